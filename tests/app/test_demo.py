import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

from app.cli import main
from app.commands import demo
from models.bundle import Bundle
from serve.store.collection import FaissStore

ROOT = Path(__file__).parents[2]
QUICK = ("demo", "--minutes=0.0001")
# The command on the configs of another folder, with fewer steps that measure the speed.
SHORT = (
    "import sys; from pathlib import Path; from app.cli import main; from app.commands import demo; "
    "demo.CONFIGS, demo.WARM_STEPS, demo.TIMED_STEPS = Path(sys.argv[1]), 1, 2; sys.exit(main(sys.argv[2:]))"
)


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A folder with configs/folder.yaml, for small images and small batches."""
    config = yaml.safe_load((ROOT / "configs/folder.yaml").read_text())
    config["data"] |= {"image_size": 32, "classes_per_batch": 4, "num_workers": 0}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "folder.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "configs"


@pytest.mark.slow
def test_demo_on_own_images(
    image_folder: Path,
    configs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"CONFIGS": configs, "WARM_STEPS": 1, "TIMED_STEPS": 2}.items():
        monkeypatch.setattr(demo, name, value)
    out = tmp_path / "demo"
    assert main([*QUICK, "--data", str(image_folder), "--out", str(out), "--no-serve"]) == 0
    printed = capsys.readouterr().out
    for word in ("recall@1", "recall@8", "map@r", "r_precision", "raw", "untrained"):
        assert word in printed
    model = Bundle.load(out / "bundle", device="cpu")
    with FaissStore.open(out / "store", read_only=True) as store:
        assert store.count() == 64
        assert store.fingerprint == model.fingerprint
        assert store.thumbnail("star/00.jpg")
    assert (out / "evaluation" / "report.html").is_file()
    assert json.loads((out / "evaluation" / "results.json").read_text())
    assert not (out / "probe").exists()


@pytest.mark.slow
def test_demo_serves_until_it_is_stopped(image_folder: Path, configs: Path, tmp_path: Path) -> None:
    options = [*QUICK, "--data", str(image_folder), "--out", str(tmp_path / "demo"), "--port", "0"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    process = subprocess.Popen(
        [sys.executable, "-c", SHORT, str(configs), *options],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        address = next(
            found[0] for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line))
        )
        with urllib.request.urlopen(address + "/", timeout=30) as page:
            assert b"<title>Kindred</title>" in page.read()
        with urllib.request.urlopen(address + "/readyz", timeout=30) as ready:
            assert ready.status == 200
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode in (0, 130)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--minutes", "0"], "--minutes"),
        (["--minutes", "soon"], "soon"),
        (["--fast"], "--fast"),
    ],
)
def test_bad_input_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
