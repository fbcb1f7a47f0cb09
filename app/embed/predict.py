"""The LightningModule of ``kindred embed``, and the images that each process embeds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightning import LightningModule
from numpy.typing import NDArray
from torch import Tensor

from app.embed.plan import Plan
from app.embed.shards import missing_shards
from data.dataset import Batch, ImageDataset
from data.loader import EvaluationBatches, ImageLoader
from data.table import ImageTable
from models.bundle import Bundle


class ShardBatches(EvaluationBatches):
    """The images of some shards in order, in batches that never span two shards.

    A shard's batches, and so its vectors, are then the same whichever process embeds it.
    """

    def __init__(self, plan: Plan, shards: Sequence[int], batch_size: int) -> None:
        super().__init__(plan.images, batch_size)
        self._spans = [
            (start, min(start + batch_size, places.stop))
            for places in (plan.places(shard) for shard in shards)
            for start in range(places.start, places.stop, batch_size)
        ]

    def __len__(self) -> int:
        return len(self._spans)

    def batch(self, epoch: int, number: int) -> NDArray[np.int64]:  # noqa: ARG002 - the sampler's signature
        """Indices of the images of one batch, int64."""
        return np.arange(*self._spans[number])


class Embedder(LightningModule):
    """Embeds the shards that a folder lacks; each process takes its share of them.

    Args:
        bundle: The model.
        table: All images.
        rows: Rows of the table to embed, int64, ascending; the plan refers to positions in it.
        folder: Of the shards.
        plan: The division into shards.
        batch_size: Images in a forward pass.
        workers: Processes for each device that read and decode; None divides the cores among devices.

    Attributes:
        missing: Shards that all processes of this run write.
        shards: Those that this process writes.
        loader: Loads their images.
    """

    def __init__(
        self,
        bundle: Bundle,
        table: ImageTable,
        rows: NDArray[np.int64],
        folder: Path,
        plan: Plan,
        *,
        batch_size: int,
        workers: int | None,
    ) -> None:
        super().__init__()
        self.network = bundle.network
        self.dataset = ImageDataset(table, rows, table.labels[rows], bundle.preprocess)
        self.folder, self.plan, self.batch_size, self.workers = folder, plan, batch_size, workers
        # There may be fewer shards than processes.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.missing: list[int] = []
        self.shards: list[int] = []
        self.loader: ImageLoader

    def predict_dataloader(self) -> ImageLoader:
        """Load this process's share of the missing shards: with n processes, every n-th."""
        # Rank 0 decides for all, because a process of an earlier run may still be writing.
        found = missing_shards(self.folder, self.plan) if self.trainer.is_global_zero else []
        self.missing = self.trainer.strategy.broadcast(found)
        self.shards = self.missing[self.trainer.global_rank :: self.trainer.world_size]
        self.loader = ImageLoader(
            self.dataset,
            ShardBatches(self.plan, self.shards, self.batch_size),
            num_workers=max(1, _cores() // self.trainer.num_devices)
            if self.workers is None
            else self.workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )
        return self.loader

    def predict_step(self, batch: Batch) -> Tensor:
        """Unit vectors, float32 (B, dim)."""
        vectors: Tensor = self.network(batch["image"])
        return vectors.float()

    @property
    def waiting_share(self) -> float:
        """Fraction of the time that all processes waited for data; a collective operation."""
        spent = [self.loader.wait_seconds, self.loader.total_seconds]
        strategy = self.trainer.strategy
        sums = torch.tensor(spent, dtype=torch.float64, device=strategy.root_device)
        waited, total = torch.as_tensor(strategy.reduce(sums, reduce_op="sum")).tolist()
        return float(waited / total) if total else 0.0


def _cores() -> int:
    """Number of cores for reading images: all but one."""
    cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()
    return max(1, (cores or 1) - 1)
