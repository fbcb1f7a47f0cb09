"""A device that is named is obeyed, whatever else the machine has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from app.cli import main
from app.evaluation.evaluated_models import EvaluatedModel, load_models
from app.evaluation.measure import Options
from app.outcome import show_outcome
from data.datamodule import ImageDataModule
from models.errors import InputError


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has CUDA; whatever then asks CUDA for anything fails."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("CUDA was asked")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda._lazy_init", refuse)


@pytest.mark.usefixtures("with_cuda")
def test_evaluate_on_the_cpu_asks_nothing_of_cuda(
    bundle_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    options = ["--split=all", f"--out={tmp_path / 'out'}", "--device=cpu", "--n-way=2", "--rerank"]
    assert main(["evaluate", f"--bundle={bundle_folder}", f"--data={image_folder}", *options]) == 0
    assert main(["evaluate", f"--data={image_folder}", *options]) == 0


def test_a_checkpoint_goes_to_the_device_that_is_named(fit_options: list[str], tmp_path: Path) -> None:
    assert main([*fit_options, "--trainer.max_steps=1", "--compare=false"]) == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    # A device that every machine has beside the CPU.
    assert load_models([], [checkpoint], "meta")[0].bundle.device.type == "meta"


def test_a_runs_last_table_is_measured_where_it_was_trained(
    fit_options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on, measured_on = [], []

    def elsewhere(*arguments: Any) -> None:
        trained_on.append(arguments[-1])
        show_outcome(*arguments[:-1], "meta")

    def note(models: Sequence[EvaluatedModel], *_: Any, options: Options, **__: Any) -> None:
        measured_on.extend([options.device, *(model.bundle.device.type for model in models)])
        raise InputError("that is enough")

    monkeypatch.setattr("app.outcome.show_outcome", elsewhere)
    monkeypatch.setattr("app.outcome.run_evaluation", note)
    assert main([*fit_options, "--trainer.max_steps=1"]) == 2
    assert (trained_on, measured_on) == (["cpu"], ["meta"] * 3)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_batches_are_pinned_for_the_trainers_device(
    kind: str, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("data.datamodule.ImageLoader", lambda *_, pin_memory, **__: asked.append(pin_memory))
    monkeypatch.setattr("torch.cuda.is_available", lambda: kind == "cpu")
    data = ImageDataModule(image_folder)
    strategy = type("Strategy", (), {"root_device": torch.device(kind)})()
    settings = {"strategy": strategy, "global_rank": 0, "world_size": 1, "overfit_batches": 0.0}
    data.trainer = type("Trainer", (), settings)()
    data.val_dataloader()
    assert asked == [kind == "cuda"]
