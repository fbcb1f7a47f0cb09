"""Detection of collapse: the network maps every image to one point."""

import math
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from models.errors import InputError


class TrainingCollapsedError(InputError):
    """Training was stopped because the embeddings collapsed."""


class CollapseMonitor(Callback):
    """Watch the training embeddings for collapse; warn once, or stop the run.

    Two signs must hold at `patience` consecutive checks: the embeddings of a batch hardly differ (their total
    variance 1 − |mean|² is below `min_variance`), or the negatives are no farther than the positives (the
    mean distances differ by less than `min_gap`). A loss that is not finite counts at once. The callback
    reads what MetricLearner logs and computes nothing itself.

    Args:
        stop: end the run with an error instead of a warning.
        grace: optimizer steps before the first check, since an untrained network's embeddings also lie close
            together.
        every: steps between checks.
        patience: number of consecutive checks.
        min_variance: variance below which a batch counts as one point; healthy batches are above 0.3.
        min_gap: least difference of the mean distances to negatives and to positives, relative to the latter.

    Raises:
        TrainingCollapsedError: during training, with `stop`.
    """

    def __init__(
        self,
        stop: bool = False,
        grace: int = 200,
        every: int = 20,
        patience: int = 5,
        min_variance: float = 0.02,
        min_gap: float = 0.01,
    ) -> None:
        self.stop, self.grace, self.every, self.patience = stop, grace, every, patience
        self.min_variance, self.min_gap = min_variance, min_gap
        self.bad_checks = 0
        self.fired = False

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Check every few steps."""
        step = trainer.global_step
        if self.fired or step % self.every or step == 0:
            return
        seen = {key: float(v) for key, v in trainer.callback_metrics.items() if key.startswith("train/")}
        loss = seen.get("train/loss", 0.0)
        if not math.isfinite(loss):
            self._fire(trainer, seen, f"the loss is {loss}")
            return
        if step < self.grace:
            return
        sign = self._sign(seen)
        self.bad_checks = self.bad_checks + 1 if sign else 0
        if self.bad_checks >= self.patience:
            self._fire(trainer, seen, sign)

    def _sign(self, seen: dict[str, float]) -> str:
        variance = seen.get("train/embedding_variance", 1.0)
        if variance < self.min_variance:
            return f"a batch's embeddings are nearly equal (variance {variance:.2g}, healthy is above 0.3)"
        near, far = seen.get("train/ap_distance"), seen.get("train/an_distance")
        if near is not None and far is not None and far - near < self.min_gap * near:
            return (
                f"negatives are no farther than positives (mean distances {far:.3g} and {near:.3g}), "
                "so the loss stays at its margin"
            )
        return ""

    def _fire(self, trainer: Trainer, seen: dict[str, float], sign: str) -> None:
        self.fired = True
        rates = ", ".join(f"{group['lr']:.2g}" for o in trainer.optimizers for group in o.param_groups)
        loss = seen.get("train/loss", math.nan)
        text = (
            f"Training has collapsed at step {trainer.global_step}: {sign}. "
            f"The loss is {loss:.3g} and the learning rate {rates}. A network in this state gives all images "
            "the same embedding and rarely recovers. The usual causes, likeliest first: a learning rate that "
            "is too high (divide it by ten, lengthen the warm-up, or set trainer.gradient_clip_val=1); "
            "hardest-negative mining (use models.mining.SemiHardMiner); labels that do not match the images; "
            "batches with too few classes."
        )
        if self.stop:
            raise TrainingCollapsedError(text)
        rank_zero_warn(text)

    def state_dict(self) -> dict[str, Any]:
        """The number of bad checks in a row, and whether the warning was given."""
        return {"bad_checks": self.bad_checks, "fired": self.fired}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.bad_checks = state_dict["bad_checks"]
        self.fired = state_dict["fired"]
