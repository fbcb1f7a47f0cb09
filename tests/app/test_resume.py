"""A run killed with SIGKILL and resumed is, bit for bit, the run that was left alone."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from app.cli import main
from models.bundle import Bundle
from models.resuming import KEY
from tests.forked import Forked

from . import killed_run
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
@pytest.mark.slow
def test_killed_and_resumed_is_bit_for_bit_the_whole_run(
    images: Path, whole: Path, tmp_path: Path, workers: int, start_kindred: Callable[..., Forked]
) -> None:
    killed = tmp_path / "killed"
    options = options_of(images, killed, workers)
    process = start_kindred([str(KILLED_AT), *options], function=killed_run.run)
    assert process.wait() == -signal.SIGKILL, process.err
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


@pytest.fixture
def short(images: Path, tmp_path: Path) -> tuple[list[str], Path]:
    """The options and the folder of a finished run of one epoch."""
    made = images.parent / "short"
    if not made.exists():
        assert main([*options_of(images, made, workers=0)[:-1], f"--run={made}", *ONE_EPOCH]) == 0
    run = Path(shutil.copytree(made, tmp_path / "run"))
    return [*options_of(images, run, workers=0), "--compare=false", "--ckpt_path=last"], run


ONE_EPOCH = ("--trainer.max_epochs=1", "--compare=false")


def last_of(run: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint


def test_more_epochs_lengthen_the_schedule(short: tuple[list[str], Path], whole: Path) -> None:
    options, run = short
    assert main(options) == 0
    assert_identical(last_of(run)["lr_schedulers"], last_of(whole)["lr_schedulers"], "schedule")


def test_what_is_set_now_is_in_force_and_in_the_config(short: tuple[list[str], Path]) -> None:
    options, run = short
    optimizer = "{class_path: torch.optim.Adam, init_args: {lr: 0.05, betas: [0.8, 0.9]}}"
    assert main([*options, f"--model.optimizer={optimizer}"]) == 0
    checkpoint = last_of(run)
    (group,), (schedule,) = checkpoint["optimizer_states"][0]["param_groups"], checkpoint["lr_schedulers"]
    assert (group["initial_lr"], group["betas"]) == (0.05, (0.8, 0.9))
    assert schedule["base_lrs"] == [0.05]
    assert group["lr"] == pytest.approx(0.0005)  # 1% at the end of the run
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.05
    assert {int(state["step"]) for state in checkpoint["optimizer_states"][0]["state"].values()} == {10}


@pytest.mark.parametrize(
    "change",
    [
        ["optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.01, momentum: 0.9}}"],
        ["backbone_lr=0.0001", "frozen_layers=[blocks.0]"],
        ["scheduler={class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1}}"],
        ["scheduler={class_path: torch.optim.lr_scheduler.ReduceLROnPlateau, init_args: {mode: max}}"],
    ],
)
def test_a_run_goes_on_under_other_settings(short: tuple[list[str], Path], change: list[str]) -> None:
    options, run = short
    assert main([*options, *(f"--model.{setting}" for setting in change)]) == 0
    assert last_of(run)["global_step"] == BATCHES * EPOCHS
    # And on from there, back under the settings of the beginning.
    assert main([*options, "--trainer.max_epochs=3"]) == 0
    assert last_of(run)[KEY]["scheduler"] == "models.schedules.WarmupCosine"
    assert last_of(run)["lr_schedulers"][0]["last_epoch"] == 3 * BATCHES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--model.embedding_dim=8", "embedding_dim was 128 and is 8"),
        ("--model.backbone=resnet10", "backbone was conv4 and is resnet10"),
        ("--model.memory_size=0", "memory_size was 24 and is 0"),
        ("--model.memory_size=32", "make them equal"),
        ("--trainer.max_epochs=0", "trained for 1"),
        ("--trainer.max_steps=2", "trained for 5"),
        ("--monitor=val/mpa@r", "choose one of val/embedding_variance"),
    ],
)
def test_what_cannot_go_on_is_refused_in_one_line_and_left_as_it_is(
    short: tuple[list[str], Path], capfd: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    options, run = short
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capfd.readouterr()
    backbone = ["--model.backbone_args=null"] if "backbone" in change else []
    assert main([*options, *backbone, change]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("kindred: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert {path: path.read_bytes() for path in files} == files


def test_a_finished_run_is_said_to_be_finished(
    short: tuple[list[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    options, run = short
    before = Bundle.load(run / "bundle").fingerprint
    assert main([*options, *ONE_EPOCH]) == 0
    assert "reached trainer.max_epochs 1; raise it to go on" in caplog.text
    assert Bundle.load(run / "bundle").fingerprint == before


def test_a_moved_run_keeps_its_best_figure(short: tuple[list[str], Path]) -> None:
    options, run = short
    best = run / "checkpoints" / "best.ckpt"
    kept = torch.load(best, weights_only=True)
    state = next(key for key in last_of(run)["callbacks"] if key.startswith("BestCheckpoint"))
    last = last_of(run)
    last["callbacks"][state]["best_model_score"] = torch.tensor(2.0)  # that nothing can exceed
    torch.save(last, run / "checkpoints" / "last.ckpt")
    assert main(options) == 0
    assert torch.load(best, weights_only=True)["global_step"] == kept["global_step"]


@pytest.mark.slow
def test_the_number_of_processes_may_change(short: tuple[list[str], Path]) -> None:
    options, run = short
    two = [
        "--config=configs/trainer/ddp.yaml",
        "--trainer.devices=2",
        "--model.normalization=sync_renorm",
        "--data.classes_per_batch=2",
    ]
    process = subprocess.run(
        [sys.executable, "-m", "app", *options, *two],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert last_of(run)["global_step"] == BATCHES * EPOCHS
    assert main([*options, "--trainer.max_epochs=3"]) == 0
    assert last_of(run)["global_step"] == BATCHES * 3
