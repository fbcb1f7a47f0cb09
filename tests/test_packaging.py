"""What `pip install .` installs: every file that the program reads, in a wheel that works by itself."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("app", "configs", "data", "models", "serve")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of a wheel, as an installer unpacks it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "installed")
    return folder / "installed"


def run(installed: Path, folder: Path, code: str) -> str:
    """What the installed program prints, in a folder that has nothing of the checkout."""
    code = f"import sys\nsys.path.insert(0, {str(installed)!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_leaves_nothing_out(installed: Path) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {
        "configs/demo.yaml",
        "configs/folder.yaml",
        "serve/page/index.html",
        "app/reports/style.css",
    } < files
    assert sorted(name for name in files if not (installed / name).is_file()) == []


def test_an_installed_program_finds_its_configs(installed: Path, tmp_path: Path) -> None:
    code = (
        "from app.commands.demo import CONFIGS\n"
        "from app.cli import main\n"
        f"assert CONFIGS.is_relative_to({str(installed)!r})\n"
        "assert (CONFIGS / 'demo.yaml').is_file() and (CONFIGS / 'folder.yaml').is_file()\n"
        "main(['demo', '--help'])"
    )
    assert "Usage: kindred demo" in run(installed, tmp_path, code)


@pytest.mark.slow
def test_training_takes_the_configs_of_an_installed_program_by_name(installed: Path, tmp_path: Path) -> None:
    """The documentation's commands work in any folder; a file of that name there comes first."""
    (tmp_path / "mine" / "configs").mkdir(parents=True)
    (tmp_path / "mine" / "configs" / "folder.yaml").write_text(
        "model: {backbone: resnet18}\ndata: {source: here}\n"
    )
    code = """
import os
from app.cli import main

def shown(*config):
    try:
        main(["fit", *config, "--print_config"])
    except SystemExit as end:
        assert end.code == 0

shown("--config", "configs/folder.yaml")
os.chdir("mine")
print("in a folder with such a file")
shown("--config=configs/folder.yaml")
"""
    without, beside = run(installed, tmp_path, code).split("in a folder with such a file")
    assert "backbone: timm.tf_efficientnet_lite0" in without
    assert "backbone: resnet18" in beside


def test_the_client_needs_none_of_the_large_packages(installed: Path, tmp_path: Path) -> None:
    """Without extras, nothing but the base requirements and what they bring is there."""
    base = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {line.split(">")[0] for line in base} == {
        "cyclopts", "httpx", "msgspec", "numpy", "pillow", "rich"
    }  # fmt: skip
    hide = "for name in ('torch', 'faiss', 'fastapi', 'yaml', 'pyarrow'): sys.modules[name] = None\n"
    run(
        installed, tmp_path, hide + "from serve.client import AsyncClient, Client\nimport serve.client.remote"
    )
    message = run(
        installed,
        tmp_path,
        hide + "sys.stderr = sys.stdout\nfrom app.cli import main\n"
        "assert main(['index', '--bundle=b', '--data=d', '--store=s']) == 2",
    )
    assert (
        message.strip()
        == "kindred: this needs packages that are not installed: pip install 'kindred[cpu]' (or gpu)"
    )
