"""Lightning's own tools around MetricLearner: they run, and do what they are for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)
from lightning.pytorch.tuner import Tuner

from models.module import MetricLearner
from tests.conftest import PLAIN_LOADERS
from tests.models.conftest import quiet_trainer

pytestmark = PLAIN_LOADERS
TINY: dict[str, Any] = {"backbone_args": {"width": 4}, "in_channels": 1, "embedding_dim": 8}


def trainer(folder: Path, *callbacks: Callback, **values: Any) -> Trainer:
    return quiet_trainer(folder, *callbacks, **({"max_epochs": 2} | values))


def rates(model: MetricLearner, run: Trainer) -> dict[str, float]:
    """The peak learning rate of each part of the model."""
    found = {id(p): group["initial_lr"] for group in run.optimizers[0].param_groups for p in group["params"]}
    parts = {"backbone": model.backbone, "head": model.network.head, "loss": model.loss}
    return {
        name: found[id(parameter)]
        for name, part in parts.items()
        if (parameter := next(part.parameters(), None)) is not None
    }


def test_lr_find_sets_the_rate_of_the_next_fit(tmp_path: Path, patterns: Any) -> None:
    seed_everything(0)
    model, data = MetricLearner(**TINY), patterns(batches=4)
    finder = Tuner(trainer(tmp_path, max_epochs=20)).lr_find(model, datamodule=data, num_training=30)
    assert finder is not None
    assert model.lr == finder.suggestion()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, data)
    assert rates(model, run) == {"backbone": model.lr, "head": model.lr}


def test_lr_is_the_rate_of_what_has_none_of_its_own(tmp_path: Path, patterns: Any) -> None:
    loss = {"class_path": "ProxyAnchorLoss"}
    model = MetricLearner(**TINY, loss=loss, num_classes=12, lr=0.02, proxy_lr=0.1)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    run.fit(model, patterns())
    assert rates(model, run) == {"backbone": 0.02, "head": 0.02, "loss": 0.1}


@pytest.mark.parametrize("values", [{}, {"backbone_lr": 1e-4}])
def test_backbone_finetuning_freezes_then_trains_the_backbone(
    tmp_path: Path, patterns: Any, values: dict[str, Any]
) -> None:
    weights: list[torch.Tensor] = []

    class Watch(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            weights.append(next(pl_module.backbone.parameters()).detach().clone())  # type: ignore[operator, union-attr]

    model = MetricLearner(**TINY, **values)
    start = next(model.backbone.parameters()).detach().clone()
    thaw = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=1e-3, should_align=False)
    run = trainer(tmp_path, thaw, Watch(), max_epochs=3, limit_train_batches=2)
    run.fit(model, patterns())
    assert torch.equal(weights[0], start)
    assert not torch.equal(weights[1], start)
    assert not torch.equal(weights[2], weights[1])
    # The schedule leaves the rate alone that the callback doubles.
    assert run.optimizers[0].param_groups[-1]["lr"] == 2e-3


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
@pytest.mark.parametrize(
    "values",
    [
        {"callbacks": [StochasticWeightAveraging(1e-3, swa_epoch_start=1)], "max_epochs": 3},
        {"callbacks": [GradientAccumulationScheduler({0: 1, 1: 2})]},
        {"fast_dev_run": 1},
        {"limit_train_batches": 3},
        {"detect_anomaly": True},
        {"profiler": "simple"},
        {"overfit_batches": 2},
        {"reload_dataloaders_every_n_epochs": 1},
        {"val_check_interval": 2},
    ],
    ids=lambda values: next(iter(values)),
)
@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled")  # the test's own loader shuffles
def test_options_of_the_trainer(tmp_path: Path, patterns: Any, values: dict[str, Any]) -> None:
    run = trainer(tmp_path, **values)
    run.fit(MetricLearner(**TINY), patterns(batches=4))
    assert run.state.finished
    assert run.global_step


@pytest.mark.filterwarnings("ignore:You are trying to `self.log\\(\\)`")
def test_barebones(tmp_path: Path, patterns: Any) -> None:
    run = Trainer(barebones=True, accelerator="cpu", max_epochs=1)
    run.fit(MetricLearner(**TINY), patterns(batches=4))
    assert run.state.finished
