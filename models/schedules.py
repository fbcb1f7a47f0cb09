"""Learning-rate schedules in fractions of the run."""

from math import cos, pi

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosine(LRScheduler):
    """Linear warm-up, then half a cosine down to a fraction of the learning rate; stepped after every step.

    The factor at progress p = step / total is min(1, p / warmup) up to `warmup`, then goes from 1 to `final`.

    Args:
        optimizer: whose learning rates are the peak.
        warmup: fraction of the run, 0 to 1.
        final: factor at the end of the run.
        total_steps: optimizer steps of the run; left out, the LightningModule fills it in from the Trainer.
    """

    def __init__(
        self, optimizer: Optimizer, warmup: float = 0.05, final: float = 0.01, total_steps: int | None = None
    ) -> None:
        self.warmup = warmup
        self.final = final
        self.total_steps = total_steps
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """What the peak rate is multiplied by in this (zero-based) step."""
        total = self.total_steps or 1
        progress = min(1.0, (step + 1) / total)
        if progress < self.warmup:
            return progress / self.warmup
        after = (progress - self.warmup) / max(1e-12, 1 - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + cos(pi * after))

    def get_lr(self) -> list[float | Tensor]:
        """Learning rates of the coming step; groups that joined the optimizer later keep theirs."""
        later = self.optimizer.param_groups[len(self.base_lrs) :]
        return [base * self.factor(self.last_epoch) for base in self.base_lrs] + [g["lr"] for g in later]

    def set_total_steps(self, total_steps: int) -> None:
        """Fix the length of the run before its first step."""
        self.total_steps = total_steps
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
