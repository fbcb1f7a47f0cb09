"""What Lightning prints: without needless warnings, and with a shorter model summary and progress bar."""

import logging
import warnings
from typing import Any

from lightning.pytorch.callbacks import RichModelSummary, RichProgressBar
from rich.console import Console
from rich.table import Table

# Start of a hidden warning, and why it is hidden.
_WARNINGS = (
    (r"\s*By default only one JsonargparseDeprecationWarning", "Lightning uses deprecated names"),
    (r"[\s\S]*deprecated\s+in\s+v4\.[\s\S]*removed\s+in\s+v5", "Lightning uses deprecated names"),
    (r"`isinstance\(treespec, LeafSpec\)`", "Lightning uses a deprecated name of torch"),
    (r"The '\w+_dataloader' does not have many workers", "the data module chose the number of workers"),
    (r"The number of training batches .* is smaller than the logging interval", "epochs are often short"),
    (r"Total length of `list` across ranks is zero", "the end of the run reports this"),
    (r"Found \d+ module\(s\) in eval mode at the start", "frozen normalization is in eval mode"),
    (r"Checkpoint directory .* exists and is not empty", "a resumed run continues in its folder"),
    (r"Precision bf16-mixed is not supported by the model summary", "our summary does not show megabytes"),
    (r"Experiment logs directory .* exists and is not empty", "a resumed run continues in its folder"),
    (r"Be aware that when using `ckpt_path`, callbacks used", "only fit has checkpoint callbacks"),
    (r"You're resuming from a checkpoint that ended before the epoch", "the loader resumes inside an epoch"),
)


def quieten() -> None:
    """Hide Lightning's tips, device listings and the warnings above."""
    for message, _reason in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning").setLevel(logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)


class Summary(RichModelSummary):
    """Lightning's table of a model's parts without the columns for modes and FLOPs."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        *_: Any,
        **__: Any,
    ) -> None:
        """Print the table."""
        columns = [column for column in summary_data if column[0] in ("Name", "Type", "Params")]
        table = Table(*(name for name, _ in columns))
        for row in zip(*(cells for _, cells in columns), strict=True):
            table.add_row(*row)
        Console().print(table)
        Console().print(f"{total_parameters:,} parameters, of which {trainable_parameters:,} train")


class ProgressBar(RichProgressBar):
    """Lightning's progress bar without the logger's version, and without "/-2" when epochs are unlimited."""

    def _get_train_description(self, current_epoch: int) -> str:
        return super()._get_train_description(current_epoch).replace("/-2", "   ")

    def get_metrics(self, *args: Any, **kwargs: Any) -> Any:
        """Return the metrics to show."""
        return {
            name: value for name, value in super().get_metrics(*args, **kwargs).items() if name != "v_num"
        }
