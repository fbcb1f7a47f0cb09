"""Drawing the whole set into a zip archive, on all cores."""

import json
import os
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from data.glyphs.characters import character_classes
from models.errors import InputError
from models.files import replacing


def draw_archive(
    path: Path, train_classes: int, test_classes: int, images_per_class: int, size: int, seed: int
) -> None:
    """Draw ``train/<class>/<n>.png`` and ``test/<class>/<n>.png``; see :class:`data.sources.GlyphSource`.

    A picture depends only on seed, class and n. The archive is written atomically.

    Raises:
        InputError: The fonts have fewer distinct characters.
    """
    wanted = train_classes + test_classes
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("Choosing characters", total=None)
        classes, faces = character_classes(wanted, seed)
        if len(classes) < wanted:
            raise InputError(
                f"glyphs: the fonts hold {len(classes)} distinct characters, not {wanted}; ask for fewer"
            )
        jobs = [
            {
                "folder": f"{'train' if number < train_classes else 'test'}/{class_name(chars[0])}",
                "variants": [(char, face) for char in chars for face in faces[char]],
                "code": ord(chars[0]),
            }
            for number, chars in enumerate(classes)
        ]
        progress.update(task, description="Drawing characters", total=wanted)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            workers = max(1, min(os.cpu_count() or 1, 8, wanted // 8))
            parts = [Path(folder) / f"{worker}.zip" for worker in range(workers)]
            settings = {"count": images_per_class, "size": size, "seed": seed}

            def run(worker: int) -> None:
                _run_worker(
                    parts[worker], {"jobs": jobs[worker::workers], **settings}, lambda: progress.advance(task)
                )

            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(run, range(workers)))
            with replacing(path) as complete:
                _join(parts, complete)


def class_name(char: str) -> str:
    """A class's name, such as "U+0041 LATIN CAPITAL LETTER A"."""
    return f"U+{ord(char):04X} {unicodedata.name(char, '')}".strip()


def _run_worker(part: Path, order: dict[str, object], advance: Callable[[], None]) -> None:
    """Draw a share of the classes in a subprocess, which prints a line for each class.

    multiprocessing would import the caller's main script again, which fails for scripts without a main guard,
    and forking a process with running threads may deadlock.
    """
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "data.glyphs.drawing", str(part)]
    with subprocess.Popen(  # noqa: S603 - our own module, no outside input
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a pipe was asked for")
        process.stdin.write(json.dumps(order))
        process.stdin.close()
        for _ in process.stdout:
            advance()
    if process.returncode:
        raise RuntimeError(f"drawing glyphs failed with exit code {process.returncode}")


def _join(parts: list[Path], path: Path) -> None:
    with zipfile.ZipFile(path, "w") as whole:
        for part in parts:
            with zipfile.ZipFile(part) as drawn:
                for info in drawn.infolist():
                    whole.writestr(info, drawn.read(info))
