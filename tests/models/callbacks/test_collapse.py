"""The collapse monitor fires on a run that collapses and stays quiet on one that does not."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch.optim import SGD

from models.callbacks.collapse import CollapseMonitor, TrainingCollapsedError
from models.module import MetricLearner
from models.schedules import WarmupCosine
from tests.conftest import PLAIN_LOADERS
from tests.models.conftest import quiet_trainer

pytestmark = PLAIN_LOADERS


def run(folder: Path, data: Any, monitor: CollapseMonitor, rate: float) -> Trainer:
    seed_everything(0)
    model = MetricLearner(
        backbone_args={"width": [8, 8, 16, 32]},
        normalization="none",
        in_channels=1,
        embedding_dim=8,
        optimizer=lambda p: SGD(p, lr=rate, momentum=0.9),
        scheduler=lambda o: WarmupCosine(o, warmup=0.0),
    )
    trainer = quiet_trainer(folder, monitor, max_epochs=6, log_every_n_steps=1, limit_val_batches=0)
    trainer.fit(model, data)
    return trainer


def monitor(**values: Any) -> CollapseMonitor:
    return CollapseMonitor(**{"grace": 40, "every": 5, "patience": 4, **values})


def test_fires_when_the_learning_rate_is_too_high(tmp_path: Path, patterns: Any) -> None:
    watch = monitor()
    with pytest.warns(UserWarning, match="Training has collapsed at step") as caught:
        run(tmp_path, patterns(), watch, rate=100.0)
    texts = [str(w.message) for w in caught if "collapsed" in str(w.message)]
    assert len(texts) == 1  # once, not at every check
    assert "learning rate that is too high" in texts[0]
    assert "\n" not in texts[0]
    assert watch.fired


def test_stops_the_run_when_asked_to(tmp_path: Path, patterns: Any) -> None:
    with pytest.raises(TrainingCollapsedError, match="collapsed"):
        run(tmp_path, patterns(), monitor(stop=True), rate=100.0)


def test_is_quiet_on_a_healthy_run(tmp_path: Path, patterns: Any) -> None:
    watch = monitor()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = run(tmp_path, patterns(), watch, rate=0.1)
    assert not [w for w in caught if "collapsed" in str(w.message)]
    assert not watch.fired
    assert trainer.callback_metrics["train/embedding_variance"] > 0.3


def test_its_state_resumes() -> None:
    watch = monitor()
    watch.bad_checks = 3
    again = monitor()
    again.load_state_dict(watch.state_dict())
    assert again.bad_checks == 3
    assert not again.fired


@pytest.mark.parametrize(
    ("figures", "bad"),
    [
        ({"embedding_variance": 0.001}, True),
        ({"embedding_variance": 0.8, "ap_distance": 0.9, "an_distance": 0.9}, True),
        ({"embedding_variance": 0.8, "ap_distance": 0.5, "an_distance": 0.9}, False),
        ({"embedding_variance": 0.8}, False),
        ({}, False),
    ],
)
def test_signs(figures: dict[str, float], bad: bool) -> None:
    assert bool(monitor()._sign({f"train/{key}": value for key, value in figures.items()})) == bad


def test_a_loss_that_is_no_number_counts_at_once(tmp_path: Path, patterns: Any) -> None:
    class Broken(MetricLearner):
        def compute_loss(self, embeddings: Any, labels: Any) -> Any:
            loss, watched = super().compute_loss(embeddings, labels)
            return loss * torch.nan, watched

    model = Broken(backbone_args={"width": 4}, in_channels=1, embedding_dim=4)
    watch = monitor(stop=True)
    trainer = quiet_trainer(tmp_path, watch, max_epochs=1, limit_val_batches=0, log_every_n_steps=1)
    with pytest.raises(TrainingCollapsedError, match="the loss is nan"):
        trainer.fit(model, patterns())
