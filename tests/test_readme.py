"""Every command block of the README and of docs/omniglot.md is executed, in order, reduced where it would
train long.
"""

import contextlib
import io
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.cli import main
from tests.forked import Forked

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OMNIGLOT = (ROOT / "docs/omniglot.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(
    r"^```(\w+)\n(.*?)^```", README + OMNIGLOT, re.MULTILINE | re.DOTALL
)

SMALL = " --data.classes_per_batch=4 --data.num_workers=0 --trainer.accelerator=cpu"
FEW_STEPS = f"{SMALL} --data.image_size=32 --trainer.max_steps="
# What a command becomes here, and why: training is shortened, serving takes a free port.
REDUCED = (
    (r"^(kindred fit .*--ckpt_path last)$", rf"\1{FEW_STEPS}3"),
    (r"^(kindred fit .*folder.yaml .*)$", rf"\1{FEW_STEPS}2"),
    (
        r"^(kindred fit .*)$",
        rf"\1{SMALL} --data.batches_per_epoch=2 --trainer.max_steps=-1 --trainer.max_epochs=1",
    ),
    (r"^(kindred evaluate .*)$", r"\1 --device cpu"),
    (r"max_epochs=20\)", "max_epochs=1, accelerator='cpu', logger=False, enable_checkpointing=False)"),
    (r"image_size=112,", "image_size=32, classes_per_batch=4, batches_per_epoch=2, num_workers=0,"),
)


def test_make_targets_of_the_readme_exist() -> None:
    """`make demo` and `make test` cannot run inside a test run; the demo itself has a test of its own."""
    commands = [
        line.split("#")[0].strip() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()
    ]
    for command in ("make demo", "make test"):
        assert command in commands
        planned = subprocess.run(
            [*command.split(), "-n"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert ("kindred demo" if "demo" in command else "pytest") in planned


def test_pictures_and_links_exist() -> None:
    """In the README and in docs; of links to a heading, the heading too."""
    missing = []
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target, heading in re.findall(
            r"\]\(([^)\s#]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8")
        ):
            if "://" in target:
                continue
            file = (page.parent / target).resolve() if target else page
            if not file.exists() or (heading and heading not in _headings(file)):
                missing.append(f"{page.relative_to(ROOT)}: {target}#{heading}")
    assert not missing


def _headings(page: Path) -> list[str]:
    """As GitHub names them in addresses."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def _picture(rng: np.random.Generator, kind: int, side: int = 32) -> Image.Image:
    y, x = np.mgrid[0:side, 0:side]
    wave = np.sin((x * np.cos(kind) + y * np.sin(kind)) * 0.6 + rng.uniform(0, 6))
    return Image.fromarray(
        np.clip(128 + 80 * wave + rng.normal(0, 10, (side, side)), 0, 255).astype(np.uint8)
    )


def _omniglot(folder: Path) -> None:
    """Miniatures of the two archives in their official layout."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, alphabets in (
        ("images_background", ("Greek", "Latin")),
        ("images_evaluation", ("Tengwar", "Ge_ez")),
    ):
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            for number, alphabet in enumerate(alphabets):
                for character in range(6):
                    for drawing in range(6):
                        buffer = io.BytesIO()
                        _picture(rng, 6 * number + character).convert("1").save(buffer, "PNG")
                        name = f"{part}/{alphabet}/character{character:02d}/{character:04d}_{drawing:02d}.png"
                        archive.writestr(name, buffer.getvalue())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: their images, and the project's configs."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / ".venv").symlink_to(Path(sys.prefix))
    rng = np.random.default_rng(0)
    for kind in range(10):
        (folder / "my-images" / f"class-{kind}").mkdir(parents=True)
        for number in range(6):
            _picture(rng, kind).convert("RGB").save(folder / "my-images" / f"class-{kind}" / f"{number}.jpg")
    for name in ("query.jpg", "other.jpg"):
        _picture(rng, 3).convert("RGB").save(folder / name)
    _omniglot(folder / "data" / "omniglot")
    return folder


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_ready(server: Forked, port: int) -> None:
    for _ in range(1200):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).read()
            return
        assert server.running, server.err
        time.sleep(0.1)
    pytest.fail("the service never was ready")


def _in_a_process(kind: str, source: str) -> str:
    arguments = [sys.executable, "-c", source] if kind == "python" else ["bash", "-euc", source]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{source}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def _here(kind: str, source: str) -> str:
    """As a process of its own would, without its imports."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if kind == "python":
            exec(compile(source, "README.md", "exec"), {"__name__": "__main__"})
        else:
            assert main(shlex.split(source)[1:]) == 0, source
    return printed.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # processes of their own would print them
@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
def test_blocks_run_in_order(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, start_kindred: Callable[..., Forked]
) -> None:
    """The first ``kindred`` command and the Python block that asks the service run in processes of their own,
    as a user's do; so do other programs.
    """
    port = _free_port()
    monkeypatch.chdir(workplace)
    for name, value in {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "KINDRED_DATA": str(workplace / "data"),
        "KINDRED_CACHE": str(workplace / "cache"),
        "OMP_NUM_THREADS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    outputs: dict[str, str] = {}
    server: Forked | None = None
    entry_point_seen = False
    for kind, block in BLOCKS:
        assert kind in ("bash", "python"), kind
        pieces = [block] if kind == "python" else [line for line in block.splitlines() if line.strip()]
        for piece in pieces:
            command = piece.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
            for pattern, replacement in REDUCED:
                command, changed = re.subn(pattern, replacement, command)
                if changed and kind == "bash":
                    break
            if command.startswith("make "):
                continue
            if command.startswith("kindred serve"):
                if server is not None:
                    server.send(signal.SIGINT)
                    server.wait()
                server = start_kindred([*shlex.split(command)[1:], "--port", str(port)], workplace)
                _wait_until_ready(server, port)
            elif kind == "bash" and (not command.startswith("kindred ") or not entry_point_seen):
                entry_point_seen |= command.startswith("kindred ")
                outputs[piece] = _in_a_process(kind, command)
            else:
                run = _in_a_process if "serve.client" in command else _here
                outputs[piece] = run(kind, command)
    by_curl = next(output for piece, output in outputs.items() if piece.startswith("curl"))
    assert '"similarity"' in by_curl
    assert (workplace / "runs/mine/evaluation/report.html").is_file()
    by_python = next(output for piece, output in outputs.items() if "search_image" in piece)
    assert len(by_python.splitlines()) == 5
