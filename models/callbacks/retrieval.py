"""Exact retrieval metrics of any LightningModule."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from models.errors import InputError
from models.gathering import gather_rows
from models.losses import embedding_variance
from models.metrics import gather_by_index, retrieval_metrics
from models.metrics.inputs import as_unit_vectors

KEYS = ("embedding", "label", "index")


class RetrievalEvaluation(Callback):
    """Log recall@k, MAP@R, R-precision and the embeddings' variance over the whole validation or test set.

    ``validation_step`` and ``test_step`` return a mapping with "embedding" (B, dim), "label" int64 (B,) and
    "index" int64 (B,), each item's number in its data set: an item that a padded sampler repeats counts once.
    Every rank logs the same values. MetricLearner has one of its own and needs no other.

    Args:
        ks: depths k of recall@k.

    Attributes:
        evaluated: embeddings, labels and indices of the latest evaluation, of all processes.

    Raises:
        InputError: a step returns something else, or none of the images could be read.
    """

    def __init__(self, ks: Sequence[int] = (1, 2, 4, 8)) -> None:
        self.ks = tuple(ks)
        self.evaluated: tuple[Tensor, Tensor, Tensor] | None = None
        self._seen: list[tuple[Tensor, ...]] = []

    def keep(self, outputs: Any) -> None:
        """Keep what a step returned until the end of the epoch."""
        if not isinstance(outputs, Mapping) or any(key not in outputs for key in KEYS):
            raise InputError(f"RetrievalEvaluation: the step must return a mapping with {', '.join(KEYS)}")
        self._seen.append(tuple(outputs[key].detach() for key in KEYS))

    def report(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Log ``<stage>/recall@1`` and the others for all that was kept; every rank must call it."""
        width = self._seen[0][0].shape[1] if self._seen else 0
        width = int(gather_rows(torch.tensor([width], device=module.device)).max())
        if not self._seen:
            # A process whose images are all unreadable still takes part in the gathering.
            none = torch.empty(0, dtype=torch.int64, device=module.device)
            self._seen.append((torch.empty(0, width, device=module.device), none, none))
        embeddings, labels, index = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        embeddings, labels, index = gather_by_index(embeddings, labels, index)
        if not len(labels):
            raise InputError(
                f"none of the {'validation' if stage == 'val' else stage} images can be read: the warnings "
                "above say why; replace these files, or choose other images (split_seed)"
            )
        if trainer.sanity_checking:
            return  # a few batches need not hold two images of any class
        self.evaluated = (embeddings, labels, index)
        metrics = retrieval_metrics(embeddings, labels, self.ks)
        metrics["embedding_variance"] = float(embedding_variance(as_unit_vectors(embeddings)))
        for name, value in metrics.items():
            # Every rank has the same value already; sync_dist only silences Lightning's warning.
            module.log(f"{stage}/{name}", value, prog_bar=name == "recall@1", sync_dist=True)

    def on_validation_batch_end(self, _: Trainer, __: LightningModule, outputs: Any, *___: Any) -> None:
        """Keep a batch's embeddings."""
        self.keep(outputs)

    def on_test_batch_end(self, _: Trainer, __: LightningModule, outputs: Any, *___: Any) -> None:
        """Keep a batch's embeddings."""
        self.keep(outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics of the validation set."""
        self.report(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics of the test set."""
        self.report(trainer, pl_module, "test")
