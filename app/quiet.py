"""Which of the libraries' messages a user of the command line need not see, each with the reason."""

import logging
import warnings

# (start of the message, why it is left out)
_WARNINGS = (
    (
        r"\s*By default only one JsonargparseDeprecationWarning",
        "Lightning uses older names of jsonargparse's",
    ),
    (r"[\s\S]*deprecated\s+in\s+v4\.[\s\S]*removed\s+in\s+v5", "likewise"),
    (r"`isinstance\(treespec, LeafSpec\)`", "Lightning uses an older name of torch's"),
    (r"The '\w+_dataloader' does not have many workers", "the data module chose the number of workers"),
    (
        r"The number of training batches .* is smaller than the logging interval",
        "epochs here are often short",
    ),
    (r"Total length of `list` across ranks is zero", "without validation classes, which is said at the end"),
    (r"Found \d+ module\(s\) in eval mode at the start", "frozen normalization is meant to be in it"),
    (r"Checkpoint directory .* exists and is not empty", "a resumed run continues in its folder"),
    (r"Precision bf16-mixed is not supported by the model summary", "nobody asks for its megabytes"),
    (r"Experiment logs directory .* exists and is not empty", "likewise"),
    (r"Be aware that when using `ckpt_path`, callbacks used", "measuring needs no checkpoint callbacks"),
    (
        r"You're resuming from a checkpoint that ended before the epoch ended",
        "the loader resumes inside an epoch",
    ),
)


def quieten() -> None:
    """Leave Lightning's tips, device listings and warnings about other libraries' names out of the output."""
    for message, _reason in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning").setLevel(logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
