"""The LightningModule of ``kindred embed``, the images that each process embeds, and the Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerStatus
from numpy.typing import NDArray
from torch import Tensor

from app.embed.plan import Plan
from app.embed.shards import missing_shards
from app.progress import without_warnings
from data.dataset import Batch, ImageDataset
from data.loader import EvaluationBatches, ImageLoader, spare_cores
from data.table import ImageTable
from models.bundle import Bundle
from models.errors import InputError

# Processes wait for each other only at the end, and the last shard of one may take long.
_TIMEOUT = timedelta(days=7)


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

    ``rows`` of the table, int64, are ascending; the plan refers to positions in them. ``workers`` are
    processes for each device; None divides the spare cores among the devices.
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
        self.missing: list[int] = []  # shards that all processes of this run write
        self.shards: list[int] = []  # those that this process writes
        self.loader: ImageLoader  # of their images

    def predict_dataloader(self) -> ImageLoader:
        """Load this process's share of the missing shards: with n processes, every n-th."""
        # Rank 0 decides for all, because a process of an earlier run may still be writing.
        found = missing_shards(self.folder, self.plan) if self.trainer.is_global_zero else []
        self.missing = self.trainer.strategy.broadcast(found)
        self.shards = self.missing[self.trainer.global_rank :: self.trainer.world_size]
        workers = self.workers
        if workers is None:
            workers = max(1, spare_cores() // self.trainer.num_devices)
        self.loader = ImageLoader(
            self.dataset,
            ShardBatches(self.plan, self.shards, self.batch_size),
            num_workers=workers,
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


def make_trainer(devices: str, accelerator: str, nodes: int, callbacks: list[Any]) -> Trainer:
    """Lightning's Trainer for prediction; for the arguments see :func:`app.commands.embed.embed`.

    Raises:
        InputError: There are no such devices.
    """
    if devices != "auto" and (not devices.isdecimal() or int(devices) < 1):
        raise InputError(f"--devices {devices}: give a number of devices, or auto")
    strategy: Any = "auto"
    several_gpus = devices == "auto" and accelerator != "cpu" and torch.cuda.device_count() > 1
    if nodes > 1 or several_gpus or (devices != "auto" and int(devices) > 1):
        strategy = DDPStrategy(timeout=_TIMEOUT)
    try:
        return Trainer(
            accelerator=accelerator,
            devices=devices if devices == "auto" else int(devices),
            num_nodes=nodes,
            strategy=strategy,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--devices {devices} --accelerator {accelerator}: {reason}") from error


def predict(trainer: Trainer, embedder: Embedder) -> None:
    """Write the missing shards.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    try:
        with without_warnings("data.loader"):  # rejects.csv lists broken images
            trainer.predict(embedder, return_predictions=False)
    except SystemExit:  # Lightning raises it after Ctrl-C
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        raise KeyboardInterrupt from None
