"""The network of ``kindred embed`` as Lightning predicts with it, and which images each process takes."""

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
    """The images of some shards in order, in batches of which none spans two shards.

    A shard's batches are then the same ones whoever makes it and whenever, and so are its vectors.
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

    def batch(self, epoch: int, number: int) -> NDArray[np.int64]:  # noqa: ARG002 - as the sampler's
        """Places of the images of one batch."""
        return np.arange(*self._spans[number])


class Embedder(LightningModule):
    """Embeds the shards that a folder lacks, as its part of them falls to each process.

    Args:
        bundle: The model.
        table: All images.
        rows: Those to embed, int64, ascending; the plan counts them.
        folder: Of the shards.
        plan: Which image belongs to which shard.
        batch_size: Images a forward pass.
        workers: Processes that read and decode, for each device; None divides the cores among the devices.

    Attributes:
        missing: Shards that this run makes, by all processes together.
        shards: Those of them that this process makes.
        loader: Reads their images.
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
        """This process's share of the missing shards: with n processes, every n-th."""
        # All go by what the first one sees: another process of an earlier run may still be writing.
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
        """Share of the time so far that the processes waited for data, all of them together; all must ask."""
        spent = [self.loader.wait_seconds, self.loader.total_seconds]
        strategy = self.trainer.strategy
        sums = torch.tensor(spent, dtype=torch.float64, device=strategy.root_device)
        waited, total = torch.as_tensor(strategy.reduce(sums, reduce_op="sum")).tolist()
        return float(waited / total) if total else 0.0


def _cores() -> int:
    """Cores that read images: all but one."""
    cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()
    return max(1, (cores or 1) - 1)
