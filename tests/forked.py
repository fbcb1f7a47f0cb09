"""Commands in processes of their own, forked from a server that has imported what they need: importing takes
longer than most of them. What has to be a new Python (entry points, imports, several processes that train
together) is started as one.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

from app.cli import main


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["app.fit", "serve.server", "tests.forked"])
    return context


def _run(
    function: Callable[[list[str]], int | None],
    arguments: list[str],
    folder: Path,
    environment: dict[str, str],
    files: tuple[Path, Path],
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY), number)
    sys.argv = ["kindred", *arguments]
    sys.exit(function(arguments))


class Forked:
    """A started ``kindred`` command, or another function of arguments.

    Args:
        arguments: Of the command.
        logs: A folder for what is printed.
        folder: Where it runs.
        environment: All of its environment variables; None takes those of this process.
        function: What is called with the arguments; an importable one.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        logs: Path,
        folder: Path,
        environment: dict[str, str] | None = None,
        function: Callable[[list[str]], int | None] = main,
    ) -> None:
        self._files = (logs / "out", logs / "err")
        for file in self._files:
            file.touch()
        given = (function, list(arguments), folder, environment or dict(os.environ), self._files)
        self.process = _context().Process(target=_run, args=given)
        self.process.start()

    @property
    def out(self) -> str:
        """What was printed so far."""
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        """What came on standard error so far."""
        return self._files[1].read_text()

    @property
    def running(self) -> bool:
        return self.process.is_alive()

    def send(self, number: int) -> None:
        """Send a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 200) -> int | None:
        """The exit code, negative after a signal; None while it runs on."""
        self.process.join(seconds)
        return self.process.exitcode
