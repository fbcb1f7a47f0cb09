"""Exact retrieval figures for any LightningModule."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from models.errors import InputError
from models.metrics import gather_by_index, retrieval_metrics

KEYS = ("embedding", "label", "index")


class RetrievalEvaluation(Callback):
    """Log exact recall@k, MAP@R and R-precision over the whole validation (or test) set.

    For modules other than MetricLearner, which does this itself. Their ``validation_step`` and ``test_step``
    return a mapping with "embedding" (B, dim), "label" int64 (B,) and "index" int64 (B,), each item's number
    in its data set: an item that a padded sampler repeats counts once. Every rank logs the same figures.

    Args:
        ks: Depths k of recall@k.
    """

    def __init__(self, ks: tuple[int, ...] = (1, 2, 4, 8)) -> None:
        self.ks = tuple(ks)
        self._seen: list[tuple[Tensor, ...]] = []

    def _keep(self, outputs: Any) -> None:
        if not isinstance(outputs, Mapping) or any(key not in outputs for key in KEYS):
            raise InputError(f"RetrievalEvaluation: the step must return a mapping with {', '.join(KEYS)}")
        self._seen.append(tuple(outputs[key].detach() for key in KEYS))

    def _log(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        embeddings, labels, index = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        embeddings, labels, _ = gather_by_index(embeddings, labels, index)
        if trainer.sanity_checking:
            return  # a few batches need not hold two images of any class
        for name, value in retrieval_metrics(embeddings, labels, self.ks).items():
            # The same on every rank already; Lightning wants to be told to average it.
            module.log(f"{stage}/{name}", value, sync_dist=True)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Keep a batch's embeddings."""
        del trainer, pl_module
        self._keep(outputs)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Keep a batch's embeddings."""
        del trainer, pl_module
        self._keep(outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the figures of the validation set."""
        self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the figures of the test set."""
        self._log(trainer, pl_module, "test")
