"""Callbacks of ``kindred embed`` that write shards and show progress."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from rich.console import Console

from app.embed.predict import Embedder
from app.embed.shards import write_shard
from app.progress import counting_progress
from data.dataset import Batch

# Seconds between two counts of the shards of all processes.
_INTERVAL = 1.0


class ShardWriter(Callback):
    """Collects the vectors of a shard and writes it when it is complete."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._written = 0
        self._indices: list[NDArray[np.int64]] = []
        self._vectors: list[NDArray[np.float32]] = []

    @property
    def waiting(self) -> int:
        """Number of vectors in memory."""
        return sum(map(len, self._indices))

    def on_predict_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Batch,
        *_: Any,
    ) -> None:
        """Collect one batch; batches come in the order of this process's shards."""
        indices = batch["index"].cpu().numpy()
        plan = self.embedder.plan
        shard = int(np.searchsorted(self.embedder.dataset.rows, indices[0])) // plan.shard_rows
        # A batch without readable images is skipped, so earlier shards may have ended without notice.
        while self.embedder.shards[self._written] != shard:
            self._write()
        self._indices.append(indices)
        self._vectors.append(outputs.cpu().numpy())
        if self.waiting == len(plan.places(shard)):
            self._write()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Write the remaining shards, of which not all images could be read."""
        while self._written < len(self.embedder.shards):
            self._write()

    def _write(self) -> None:
        embedder, plan = self.embedder, self.embedder.plan
        table, shard = embedder.dataset.table, embedder.shards[self._written]
        places = plan.places(shard)
        indices = np.concatenate([np.empty(0, np.int64), *self._indices])
        vectors = np.concatenate([np.empty((0, plan.dim), np.float32), *self._vectors])
        lost = np.setdiff1d(embedder.dataset.rows[places.start : places.stop], indices, assume_unique=True)
        names = [table.name(row) for row in lost.tolist()]
        rejects = [(name, embedder.loader.corrupt[name]) for name in names]
        write_shard(embedder.folder, plan, shard, table, indices, vectors, rejects)
        self._written += 1
        self._indices, self._vectors = [], []


class EmbedProgress(Callback):
    """A progress bar over the images of all processes, by the shards in the folder."""

    def __init__(self, writer: ShardWriter) -> None:
        self.writer, self.embedder = writer, writer.embedder
        self._bar = counting_progress(console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("embedding", total=self.embedder.plan.images)
        self._looked = 0.0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Show the bar."""
        if trainer.is_global_zero:
            self._bar.start()

    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Update the bar at intervals."""
        now = time.perf_counter()
        if not trainer.is_global_zero or now - self._looked < _INTERVAL:
            return
        self._looked, plan = now, self.embedder.plan
        present = {path.name for path in self.embedder.folder.glob("*.parquet")}
        done = sum(len(plan.places(shard)) for shard in range(plan.shards) if plan.file(shard) in present)
        self._bar.update(self._task, completed=min(done + self.writer.waiting, plan.images))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Remove the bar."""
        self._bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Remove the bar before the error message is printed."""
        self._bar.stop()
