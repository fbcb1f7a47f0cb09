import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from app.cli import main
from app.commands.search import contact_sheet
from models.bundle import Bundle
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess
from tests.forked import Forked

ROOT = Path(__file__).parents[2]


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for command in (
        "demo",
        "fit",
        "validate",
        "test",
        "predict",
        "evaluate",
        "index",
        "serve",
        "export",
        "search",
    ):
        assert command in printed


@pytest.mark.parametrize("command", ["demo", "evaluate", "index", "serve", "export", "search"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"Usage: kindred {command}" in capsys.readouterr().out


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fly"]) == 2
    assert 'Unknown command "fly"' in line_of(capsys)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out.split() == [project["version"]]


def test_python_m_app_is_kindred() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app", "export", "none.ckpt", "--out", "x"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("kindred: none.ckpt: no such checkpoint")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_export_of_something_else(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    assert main(["export", str(path), "--out", str(tmp_path / "bundle")]) == 2
    assert "x.ckpt: cannot be read" in line_of(capsys)


def test_export_does_not_unpickle_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": subprocess.Popen}, path)
    assert main(["export", str(path), "--out", str(tmp_path / "bundle")]) == 2
    assert "cannot be read" in line_of(capsys)


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    architecture = Architecture(backbone="conv4", embedding_dim=16)
    return Bundle(EmbeddingNetwork(architecture), architecture, Preprocess(size=28)).save(tmp_path / "bundle")


def test_a_busy_port(bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = [
            "serve",
            "--bundle",
            str(bundle_folder),
            "--store",
            str(tmp_path / "s"),
            "--port",
            str(port),
        ]
        assert main(options) == 2
    assert f"127.0.0.1:{port}" in line_of(capsys)


def test_a_public_address_wants_a_key(bundle_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--bundle", str(bundle_folder), "--host", "0.0.0.0"]) == 2
    assert "KINDRED_WRITE_KEY" in line_of(capsys)


def test_search_without_a_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "none.png"]) == 2
    assert "none.png: no such file" in line_of(capsys)


def test_contact_sheet_has_a_tile_for_every_image() -> None:
    page = contact_sheet([None] * 7, [str(number) for number in range(7)], columns=3)
    assert page.size == (480, 540)


def test_search_prints_neighbours_and_writes_a_contact_sheet(
    image_folder: Path,
    bundle_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    start_kindred: Callable[..., Forked],
) -> None:
    store = tmp_path / "store"
    assert (
        main(["index", "--bundle", str(bundle_folder), "--data", str(image_folder), "--store", str(store)])
        == 0
    )
    options = ["--bundle", str(bundle_folder), "--store", str(store), "--port", "0"]
    process = start_kindred(["serve", *options])
    while (address := re.search(r"http://127\.0\.0\.1:\d+", process.out)) is None:
        assert process.running, process.err
        time.sleep(0.05)
    sheet = tmp_path / "sheet.png"
    query = image_folder / "star" / "01.jpg"
    capsys.readouterr()
    assert main(["search", str(query), "--url", address[0], "--k", "3", "--sheet", str(sheet)]) == 0
    printed = capsys.readouterr().out
    assert "star/01.jpg" in printed
    assert "1.0000" in printed
    with Image.open(sheet) as written:
        assert written.size == (640, 180)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"text")
    assert main(["search", str(broken), "--url", address[0]]) == 2
    assert "not an image" in line_of(capsys)
    process.send(signal.SIGINT)
    assert process.wait() in (0, 130)


@pytest.mark.parametrize(
    "arguments",
    [
        ["index", "--bundle=b", "--store=s", "--data", ""],
        ["index", "--bundle=b", "--store=s", "--data="],
        ["index", "--bundle", "", "--data=d", "--store=s"],
        ["search", "query.jpg", "--url", ""],
    ],
)
def test_an_empty_value_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "is empty; give it a value, or leave it out" in line_of(capsys)


@pytest.mark.parametrize(
    "command", [["index", "--data=d", "--store=s"], ["fit", "--config=configs/demo.yaml"]]
)
def test_a_tilde_after_an_equals_sign_is_the_home_folder(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    option = "--bundle" if command[0] == "index" else "--data.source"
    assert main([*command, f"{option}=~/nothing-here"]) == 2
    assert str(tmp_path / "nothing-here") in line_of(capsys)


def test_an_address_without_a_scheme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "query.png")
    assert main(["search", str(tmp_path / "query.png"), "--url", "localhost:8000"]) == 2
    assert "give one such as http://127.0.0.1:8000" in line_of(capsys)


def test_embed_refuses_a_negative_number_of_workers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", "--bundle=b", "--data=d", "--out=o", "--workers=-1"]) == 2
    assert line_of(capsys).endswith("--workers -1: must be at least 0")
