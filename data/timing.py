"""The share of the training time spent waiting for data."""

from lightning import Callback, LightningModule, Trainer
from rich.console import Console

from data.loader import ImageLoader


class InputTiming(Callback):
    """Logs ``input/wait_share`` after each epoch and prints the shares at the end of the run.

    The first epoch, which decodes every file, is separate from later ones, which use the cache.
    """

    def __init__(self) -> None:
        self.first = (0.0, 0.0)
        self.later = (0.0, 0.0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch's share."""
        loader = trainer.train_dataloader
        if not isinstance(loader, ImageLoader):
            return
        spent = (loader.wait_seconds, loader.total_seconds)
        if self.first == (0.0, 0.0):
            self.first = spent
        else:
            self.later = (self.later[0] + spent[0], self.later[1] + spent[1])
        pl_module.log("input/wait_share", loader.wait_share, sync_dist=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Print both shares."""
        parts = [
            f"{name} {wait / total:.1%} of {total:.0f} s"
            for name, (wait, total) in (("first epoch", self.first), ("later epochs", self.later))
            if total
        ]
        if parts and trainer.is_global_zero:
            Console().print("waiting for data:", ", ".join(parts))
