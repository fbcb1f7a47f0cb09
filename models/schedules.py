"""The default learning-rate schedule."""

from math import cos, pi

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosine(LRScheduler):
    """Linear warm-up, then half a cosine down to a fraction of the learning rate.

    Step it after every optimizer step. At progress p = step / total the factor is p / warmup up to `warmup`,
    then falls from 1 to `final`. The length may be set after construction, which torch's
    ``SequentialLR(LinearLR, CosineAnnealingLR)`` does not allow.

    Args:
        optimizer: its learning rates are the peak.
        warmup: fraction of the run, 0 to 1.
        final: factor at the end of the run.
        total_steps: optimizer steps of the run; by default the LightningModule sets them from the Trainer.
    """

    def __init__(
        self, optimizer: Optimizer, warmup: float = 0.05, final: float = 0.01, total_steps: int | None = None
    ) -> None:
        self.warmup = warmup
        self.final = final
        self.total_steps = total_steps
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """The factor of the peak rate in a (zero-based) step."""
        total = self.total_steps or 1
        progress = min(1.0, (step + 1) / total)
        if progress < self.warmup:
            return progress / self.warmup
        after = (progress - self.warmup) / max(1e-12, 1 - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + cos(pi * after))

    def get_lr(self) -> list[float | Tensor]:
        """Learning rates of the next step; parameter groups that were added later keep theirs."""
        later = self.optimizer.param_groups[len(self.base_lrs) :]
        return [base * self.factor(self.last_epoch) for base in self.base_lrs] + [g["lr"] for g in later]

    def set_total_steps(self, total_steps: int) -> None:
        """Set the length of the run before its first step."""
        self.total_steps = total_steps
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
