"""A Milvus server of one's own, from the package `milvus` (`make milvus-server`; Linux on x86-64)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

COMMAND = shutil.which("milvus-server")
"""The program; None where it is not on the PATH."""

# Far shorter than by default: a test's collection is ready, and its writes are visible, that much sooner.
_CONFIGURATION = {
    "proxy.timeTickInterval": 10,
    "queryCoord.checkInterval": 100,
    "queryCoord.distPullInterval": 50,
}
_START_SECONDS = 180


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class MilvusServer:
    """A server over a folder; may be killed and started again.

    Args:
        folder: Where it keeps its data.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"milvus://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Starts it and waits until it answers, about half a minute."""
        assert COMMAND is not None, "no milvus-server on the PATH; run make milvus-server"
        self._folder.mkdir(parents=True, exist_ok=True)
        told = self._folder / "told.log"
        given = [f"--extra-config={name}={value}" for name, value in _CONFIGURATION.items()]
        command = [COMMAND, "--data", str(self._folder / "data"), "--proxy-port", str(self._port), *given]
        with told.open("wb") as log:
            # A group of its own: the command is a shell around the server, and both are killed.
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + _START_SECONDS
        while b"Ctrl+C to exit" not in told.read_bytes():
            assert self._process.poll() is None, told.read_text()
            assert time.monotonic() < deadline, f"the server does not answer: {told.read_text()}"
            time.sleep(0.2)

    def kill(self) -> None:
        """Ends it at once (SIGKILL)."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def milvus_server(folder: Path) -> Iterator[MilvusServer]:
    """A server that runs for the length of a block."""
    server = MilvusServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
