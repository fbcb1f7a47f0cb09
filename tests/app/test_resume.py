"""A run killed with SIGKILL and resumed is, bit for bit, the run that was left alone."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from app.cli import main
from models.bundle import Bundle

from .conftest import write_images

ROOT = Path(__file__).parents[2]
BATCHES, EPOCHS, KILLED_AT = 5, 2, 7


def options_of(images: Path, run: Path, workers: int) -> list[str]:
    """All that keeps a state: averaging, memory, renorm's schedule, a miner that draws at random."""
    return [
        "fit",
        "--config=configs/model/conv4.yaml",
        "--config=configs/data/folder.yaml",
        "--model.memory_size=24",
        "--model.miner={class_path: pytorch_metric_learning.miners.DistanceWeightedMiner}",
        "--data.image_size=28",
        "--data.classes_per_batch=4",
        f"--data.batches_per_epoch={BATCHES}",
        f"--data.num_workers={workers}",
        f"--data.source={images}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.log_every_n_steps=1",
        f"--trainer.max_epochs={EPOCHS}",
        "--trainer.callbacks+=models.callbacks.averaging.MovingAverage",
        "--save_seconds=0",
        f"--run={run}",
    ]


def assert_identical(first: Any, second: Any, where: str) -> None:
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_identical(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for number, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_identical(a, b, f"{where}/{number}")
    else:
        assert first == second, where


def last_losses(run: Path) -> dict[str, str]:
    """Step to loss of the latest log of a run."""
    latest = max(run.glob("logs/csv/*/metrics.csv"), key=lambda path: path.stat().st_mtime_ns)
    with latest.open(newline="") as file:
        return {row["step"]: row["train/loss"] for row in csv.DictReader(file) if row.get("train/loss")}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("resume") / "images")


@pytest.fixture(scope="module")
def whole(images: Path) -> Path:
    """The run that was left alone; the number of workers changes nothing in it."""
    run = images.parent / "whole"
    assert main(options_of(images, run, workers=0)) == 0
    return run


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_is_bit_for_bit_the_whole_run(
    images: Path, whole: Path, tmp_path: Path, workers: int
) -> None:
    killed = tmp_path / "killed"
    options = options_of(images, killed, workers)
    process = subprocess.run(
        [sys.executable, "tests/app/killed_run.py", str(KILLED_AT), *options],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    left = torch.load(killed / "checkpoints" / "last.ckpt", weights_only=True)
    assert left["global_step"] == KILLED_AT
    assert KILLED_AT % BATCHES, "the kill must fall into the middle of an epoch"

    assert main([*options, "--ckpt_path=last"]) == 0
    ends = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, killed)]
    assert ends[0]["global_step"] == BATCHES * EPOCHS
    for key in (
        "state_dict",
        "optimizer_states",
        "lr_schedulers",
        "kindred",
        "averaging_state",
        "ImageDataModule",
    ):
        assert_identical(*(end.get(key) for end in ends), key)
    assert ends[0]["kindred"]["metrics"]["val/recall@1"] > 0
    assert Bundle.load(whole / "bundle").fingerprint == Bundle.load(killed / "bundle").fingerprint
    resumed = last_losses(killed)
    assert len(resumed) == BATCHES * EPOCHS - KILLED_AT
    assert resumed.items() <= last_losses(whole).items()
