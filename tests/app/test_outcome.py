"""A run's last words: what training was good for, and a bundle that is no worse than the start."""

import csv
from pathlib import Path

import pytest
import torch

from app.cli import main
from app.export import bundle_from_checkpoint
from models.bundle import Bundle

FOLDER = (
    "fit",
    "--config=configs/folder.yaml",
    "--data.image_size=32",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)


def validated(run: Path) -> list[tuple[int, float]]:
    """Step and MAP@R of each validation."""
    with next(run.glob("logs/csv/*/metrics.csv")).open(newline="") as file:
        return [
            (int(row["step"]), float(row["val/map@r"])) for row in csv.DictReader(file) if row["val/map@r"]
        ]


def test_training_that_helped_is_measured_beside_what_needs_none(
    fit_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    length = ["--trainer.max_epochs=10", "--trainer.check_val_every_n_epoch=4"]
    assert main([*fit_options, *length]) == 0
    said = capsys.readouterr().out
    rows = ("colour histogram", "raw pixels", "before training", "best weights of this run")
    assert all(row in said for row in rows)
    assert "Training helped" in said
    assert "untrained" not in said.partition("validation classes")[2]
    # Before the first of 30 steps, after every fourth epoch, and at the end.
    run = tmp_path / "run"
    assert [step for step, _ in validated(run)] == [0, 11, 23, 30]
    first = bundle_from_checkpoint(run / "checkpoints" / "first.ckpt")
    assert first.info["step"] == 0
    assert first.fingerprint != Bundle.load(run / "bundle", "cpu").fingerprint


def test_a_pretrained_network_as_it_is_stands_beside_the_trained_one(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--data.source={image_folder}", f"--run={tmp_path / 'run'}"]
    assert main([*FOLDER, *options, "--trainer.max_steps=2"]) == 0
    assert "pretrained, not trained" in capsys.readouterr().out


def test_training_that_does_not_help_leaves_the_bundle_of_the_start(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = [f"--data.source={image_folder}", f"--run={run}", "--trainer.max_steps=4"]
    rates = ["--model.backbone_lr=1000", "--model.optimizer.init_args.lr=1000"]
    assert main([*FOLDER, *options, *rates]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Training did not help" in said
    assert "The bundle holds the weights before the first step" in said
    assert "What usually helps: a lower learning rate" in said
    bundle = Bundle.load(run / "bundle", "cpu")
    assert bundle.info["step"] == 0
    assert all(torch.isfinite(value).all() for value in bundle.network.state_dict().values())


def test_without_validation_classes_nothing_is_claimed(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--data.source={image_folder}", f"--run={tmp_path / 'run'}", "--monitor=null"]
    none = ["--data.val_fraction=0", "--trainer.max_steps=1"]
    assert main([*FOLDER, *options, *none]) == 0
    assert "no validation classes" in capsys.readouterr().out
