"""A loader that resumes after the last consumed batch, and measures the time spent waiting for it."""

import logging
import math
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from data.counter_rng import derive
from data.dataset import Batch, BatchSpec, ImageDataset, LoadedBatch
from data.sampling import PKBatchSampler

_log = logging.getLogger(__name__)

# Corrupt images that are logged, of each loader.
_NAMED_AT_MOST = 20

# Key of the random stream of augmentations.
_AUGMENT = 3


def spare_cores() -> int:
    """Number of cores for processes that read images: all but one."""
    cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()
    return (cores or 1) - 1


class _BatchSpecs:
    """The batches of one epoch from batch ``first`` on, as :class:`BatchSpec` for the workers."""

    def __init__(self, seed: int, sampler: "PKBatchSampler | EvaluationBatches") -> None:
        self.seed, self.sampler, self.first = seed, sampler, 0

    def __len__(self) -> int:
        return len(self.sampler) - self.first

    def __iter__(self) -> Iterator[BatchSpec]:
        epoch = self.sampler.epoch
        for number in range(self.first, len(self.sampler)):
            items = self.sampler.batch(epoch, number)
            # Positions in the global batch, so that the keys do not depend on the number of processes.
            position = self.sampler.rank * len(items) + np.arange(len(items))
            yield BatchSpec(items, derive(self.seed, _AUGMENT, epoch, number, position))


class EvaluationBatches:
    """Every item once, in order, in batches.

    Of several processes, each takes every ``world_size``-th item; shorter parts are padded with repeated
    items, so that all have equally many batches (duplicates have the same ``index``).
    """

    def __init__(self, items: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.items, self.batch_size, self.rank, self.world_size = items, batch_size, rank, world_size
        self.epoch = 0
        self._mine = -(-items // world_size)

    def __len__(self) -> int:
        return math.ceil(self._mine / self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: there is nothing random."""

    def batch(self, epoch: int, number: int) -> NDArray[np.int64]:  # noqa: ARG002 - as the sampler's
        """The items of one batch of this process, int64 (B,)."""
        mine = np.arange(number * self.batch_size, min((number + 1) * self.batch_size, self._mine))
        return (mine * self.world_size + self.rank) % self.items


class ImageLoader:
    """Batches of an :class:`ImageDataset`, made by worker processes.

    It is not a subclass of torch's ``DataLoader``, because Lightning rebuilds those with its own samplers,
    which would break up P×K batches; and it has no ``sampler``, which Lightning would replace for
    overfitting. Lightning calls ``set_epoch`` on ``batch_sampler.sampler``, and ``state_dict`` on the loader.
    Workers start with the first requested batch, when the epoch is known, and the state counts consumed
    batches, not prefetched ones.

    Args:
        dataset: The images.
        batches: The items of each batch.
        seed: Of the augmentation.
        num_workers: Number of processes that read and decode; 0 uses the caller's process.
        pin_memory: Whether batches are in page-locked memory, for copies to a GPU.
        same_batches: Whether every epoch has the same batches, for Lightning's overfit_batches.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batches: PKBatchSampler | EvaluationBatches,
        *,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        same_batches: bool = False,
    ) -> None:
        self.dataset, self.batches, self.same_batches = dataset, batches, same_batches
        self.corrupt: dict[str, str] = {}
        self.wait_seconds, self.total_seconds = 0.0, 0.0
        self._specs = _BatchSpecs(seed, batches)
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._specs,  # type: ignore[arg-type]  # yields BatchSpec, which the dataset understands
            num_workers=num_workers,
            collate_fn=_unchanged,  # the dataset returns whole batches
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            # With a generator of its own, starting an epoch does not draw from training's.
            generator=torch.Generator(),
        )
        self._consumed = 0
        self._resume: tuple[int, int] | None = None

    @property
    def batch_sampler(self) -> _BatchSpecs | None:
        """Its ``sampler`` has the ``set_epoch`` that Lightning calls; None keeps the same epoch."""
        return None if self.same_batches else self._specs

    @property
    def _iterator(self) -> Any:
        """The running worker processes, by the name under which Lightning looks for them to end them.

        The garbage collector may collect the queue that tells a worker to end before it waits for the worker,
        which costs five seconds each.
        """
        return self._loader._iterator

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        self._loader._iterator = value

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the number of its consumed batches, and the sampler's state."""
        sampler = self.batches.state_dict() if isinstance(self.batches, PKBatchSampler) else None
        return {"epoch": self.batches.epoch, "consumed": self._consumed, "sampler": sampler}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue that epoch, once, after the last batch consumed when the state was saved."""
        self._resume = (int(state["epoch"]), int(state["consumed"]))
        if isinstance(self.batches, PKBatchSampler) and state["sampler"] is not None:
            self.batches.load_state_dict(state["sampler"])

    @property
    def wait_share(self) -> float:
        """Share of the epoch's time so far that the consumer spent waiting for batches."""
        return self.wait_seconds / self.total_seconds if self.total_seconds else 0.0

    def __iter__(self) -> Iterator[Batch]:
        first = 0
        if self._resume is not None and self._resume[0] == self.batches.epoch:
            first = self._resume[1]
        self._resume = None
        self._specs.first = self._consumed = first
        self.wait_seconds = self.total_seconds = 0.0
        started = time.perf_counter()
        asked = started
        loaded: LoadedBatch
        for loaded in self._loader:
            arrived = time.perf_counter()
            self.wait_seconds += arrived - asked
            self.total_seconds = arrived - started
            self._report(loaded.corrupt)
            self._consumed += 1
            if len(loaded.batch["label"]):
                yield loaded.batch
            asked = time.perf_counter()
            self.total_seconds = asked - started

    def _report(self, corrupt: dict[str, str]) -> None:
        for name, reason in corrupt.items():
            if name in self.corrupt:
                continue
            self.corrupt[name] = reason
            if len(self.corrupt) <= _NAMED_AT_MOST:
                _log.warning("skipped a corrupt image: %s", reason)
            elif len(self.corrupt) == _NAMED_AT_MOST + 1:
                _log.warning("further corrupt images are skipped without a message")


def _unchanged(loaded: Any) -> Any:
    return loaded
