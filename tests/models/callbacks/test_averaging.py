"""The moving average against a plain loop; deviations, not variances, are averaged."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from torch import Tensor

from models.callbacks.averaging import MovingAverage
from models.module import MetricLearner
from models.renorm import BatchRenorm
from tests.conftest import PLAIN_LOADERS
from tests.models.conftest import quiet_trainer

pytestmark = PLAIN_LOADERS
TINY: dict[str, Any] = {"backbone_args": {"width": 4}, "in_channels": 1, "embedding_dim": 4}


class Recorder(Callback):
    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.states.append(copy.deepcopy(pl_module.network.state_dict()))


def test_equals_a_plain_loop_and_ends_in_the_model(tmp_path: Path, patterns: Any) -> None:
    seed_everything(0)
    model, recorder, average = MetricLearner(**TINY), Recorder(), MovingAverage(decay=0.5)
    quiet_trainer(tmp_path, recorder, average, max_steps=12).fit(model, patterns())
    eps = next(m.eps for m in model.modules() if isinstance(m, BatchRenorm))

    def encoded(name: str, value: Tensor) -> Tensor:
        return (value + eps).sqrt() if name.endswith("running_var") else value

    expected = {name: encoded(name, value) for name, value in recorder.states[0].items()}
    for number, state in enumerate(recorder.states[1:], start=1):
        decay = min(0.5, (1 + number) / (10 + number))
        for name, value in state.items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * encoded(name, value)
            else:
                expected[name] = value
    for name, value in model.network.state_dict().items():
        assert torch.allclose(encoded(name, value), expected[name], atol=1e-6), name


def test_validation_sees_the_average_and_training_goes_on_without_it(tmp_path: Path, patterns: Any) -> None:
    seen: list[Tensor] = []

    class Watched(MetricLearner):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if not self.trainer.sanity_checking:
                seen.append(self.network.head.weight.detach().clone())
            super().validation_step(batch, batch_idx, dataloader_idx)

    seed_everything(0)
    recorder, average = Recorder(), MovingAverage(decay=0.9)
    model = Watched(**TINY)
    quiet_trainer(tmp_path, recorder, average, max_epochs=2).fit(model, patterns(batches=6))
    assert not torch.equal(seen[0], recorder.states[5]["head.weight"])
    seed_everything(0)
    plain = Recorder()
    quiet_trainer(tmp_path, plain, max_epochs=2).fit(MetricLearner(**TINY), patterns(batches=6))
    for name, value in plain.states[-1].items():
        assert torch.equal(value, recorder.states[-1][name]), name


def test_a_run_interrupted_in_validation_keeps_the_current_weights(tmp_path: Path, patterns: Any) -> None:
    class Interrupted(MetricLearner):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if not self.trainer.sanity_checking:
                raise RuntimeError("interrupted")
            super().validation_step(batch, batch_idx, dataloader_idx)

    model, recorder = Interrupted(**TINY), Recorder()
    with pytest.raises(RuntimeError, match="interrupted"):
        quiet_trainer(tmp_path, recorder, MovingAverage(), max_epochs=1).fit(model, patterns())
    assert torch.equal(model.network.head.weight, recorder.states[-1]["head.weight"])


def test_decay_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="decay"):
        MovingAverage(decay=1.0)
