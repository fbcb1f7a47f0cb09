"""A moving average of weights and statistics, used for validation, checkpoints and the final model."""

from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from models.renorm import averaging_deviations


class MovingAverage(WeightAveraging):
    """Lightning's WeightAveraging as in the Batch Renormalization paper: exponential, with the statistics.

    After every optimizer step, average ← decay · average + (1 − decay) · current. After n updates the decay
    is at most (1 + n) / (10 + n), so that the initial weights are soon forgotten. As in the layers
    themselves, Batch Renormalization's standard deviations are averaged instead of the variances.

    Args:
        decay: 0.999 averages over about a thousand steps.

    Raises:
        ValueError: decay is outside [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay {decay} is outside [0, 1)")
        self.decay = decay
        super().__init__(avg_fn=self._average)
        self._swapped = False

    def rate(self, updates: int) -> float:
        """The decay after a number of updates."""
        return min(self.decay, (1 + updates) / (10 + updates))

    def _average(self, average: Tensor, current: Tensor, updates: Tensor) -> Tensor:
        if not average.is_floating_point():
            return current
        return torch.lerp(current, average, self.rate(int(updates)))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        """Update the average after an optimizer step; Batch Renormalization's deviations are averaged."""
        if self._average_model is None:
            raise RuntimeError("on_train_batch_end before setup")
        stepped = trainer.global_step > self._latest_update_step
        with averaging_deviations(pl_module, self._average_model.module) if stepped else nullcontext():
            super().on_train_batch_end(trainer, pl_module, *rest)

    def _swap_models(self, pl_module: LightningModule) -> None:
        super()._swap_models(pl_module)
        self._swapped = not self._swapped

    def on_exception(self, _: Trainer, pl_module: LightningModule, *__: Any) -> None:
        """Restore the current weights when validation is interrupted, so that a checkpoint can resume."""
        if self._swapped:
            self._swap_models(pl_module)
