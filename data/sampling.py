"""P×K batches: P classes with K images each, as triplets need."""

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from data.counter_rng import derive, permuted
from models.errors import InputError

_log = logging.getLogger(__name__)

SmallClasses = Literal["repeat", "skip", "error"]

# Keys of the independent random streams.
_CLASSES, _IMAGES = 1, 2
# Batches computed at once.
_BLOCK = 16


class PKBatchSampler(Sampler[list[int]]):
    """Batches of ``classes_per_batch`` classes × ``samples_per_class`` images, from a generator of its own.

    - No class occurs twice in a batch (over all processes), and every class is visited before any is
      repeated, across epochs too. A class's images are likewise all used before one is repeated, except for
      fewer than ``samples_per_class`` in each pass, others each time.
    - Every process computes the same global sequence and takes its own part: ``world_size`` processes with
      P classes each see exactly the batches of one process with ``world_size`` × P.
    - Every batch depends only on (seed, epoch, batch number), so that a run can resume within an epoch.
    - The images of a class are adjacent: positions i·K … i·K + K − 1 of a batch are of one class.

    Lightning calls ``set_epoch`` only on a batch sampler's ``sampler`` attribute: here, this object.

    Args:
        labels: Class of each image, N integers.
        classes_per_batch: P, classes in a batch of one process; all of them, with a warning, where there are
            fewer.
        samples_per_class: K, images of each class; positive pairs need at least 2.
        batches_per_epoch: By default an epoch is a pass over the images: their number divided by the size of
            a global batch, rounded up.
        seed: Of every random choice.
        small_classes: For classes with fewer than K images: "repeat" their images within the batch, "skip"
            the class, or "error".
        groups: Group of each class, one integer for each of 0 … max(labels). Classes of a group are visited
            one after another, so that confusable classes share a batch.
        group_from_epoch: Passes over the classes that begin before this epoch are not grouped.
        regroup: Whether :meth:`set_groups` will be called during the run; each epoch then starts a new pass
            over the classes, since a pass cannot continue with changed groups.
        rank: Of this process.
        world_size: Number of processes.
        class_names: For error messages.

    Raises:
        InputError: Too few classes or images for the batches asked for.
    """

    def __init__(
        self,
        labels: ArrayLike,
        classes_per_batch: int,
        samples_per_class: int,
        batches_per_epoch: int | None = None,
        seed: int = 0,
        *,
        small_classes: SmallClasses = "repeat",
        groups: ArrayLike | None = None,
        group_from_epoch: int = 0,
        regroup: bool = False,
        rank: int = 0,
        world_size: int = 1,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if min(classes_per_batch, samples_per_class, world_size) < 1 or not 0 <= rank < world_size:
            raise InputError(
                "sampler: classes_per_batch, samples_per_class and world_size must be at least 1"
            )
        all_labels = np.asarray(labels, dtype=np.int64)
        counts = np.bincount(all_labels)
        # Images by class: those of class c are _rows[_start[c] : _start[c] + counts[c]].
        self._rows = np.argsort(all_labels, kind="stable").astype(np.int64)
        self._start = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self._counts = counts.astype(np.int64)
        self._classes = _eligible(self._counts, samples_per_class, small_classes, class_names)
        self.classes_per_batch, self.samples_per_class = classes_per_batch, samples_per_class
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.group_from_epoch, self.regroup, self.epoch = group_from_epoch, regroup, 0
        self._groups = None if groups is None else np.asarray(groups, dtype=np.int64)
        if self._groups is not None and len(self._groups) < len(counts):
            raise InputError(
                f"sampler: {len(self._groups)} groups for {len(counts)} classes; give one for each"
            )
        if group_from_epoch and self._groups is None and not regroup:
            raise InputError(
                "sampler: group_from_epoch without groups has no effect; set group_by or regroup"
            )
        if len(self._classes) < world_size:
            raise InputError(
                f"sampler: {len(self._classes)} usable classes for {world_size} processes; "
                "add classes or images"
            )
        if len(self._classes) < classes_per_batch * world_size:
            self.classes_per_batch = len(self._classes) // world_size
            _log.warning(
                "batches of %d classes instead of %d: there are no more to train on",
                self.classes_per_batch,
                classes_per_batch,
            )
        total = self.classes_per_batch * world_size
        images = int(self._counts[self._classes].sum())
        self.batches_per_epoch = batches_per_epoch or math.ceil(images / (total * samples_per_class))
        self._passes: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._block: tuple[tuple[int, int], NDArray[np.int64]] | None = None

    @property
    def sampler(self) -> "PKBatchSampler":
        """This object: Lightning calls its ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def set_groups(self, groups: ArrayLike | None) -> None:
        """Change the groups (see :mod:`data.grouping`) from the next iteration on; needs ``regroup``."""
        if not self.regroup:
            raise ValueError("set_groups needs PKBatchSampler(regroup=True)")
        self._groups = None if groups is None else np.asarray(groups, dtype=np.int64)
        self._passes, self._block = {}, None

    def state_dict(self) -> dict[str, Any]:
        """The epoch and, with ``regroup``, the groups; the rest follows from the arguments."""
        groups = self._groups if self.regroup else None
        return {"epoch": self.epoch, "groups": None if groups is None else groups.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.epoch = int(state["epoch"])
        if self.regroup:
            self.set_groups(state["groups"])

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.batches_per_epoch):
            yield self.batch(self.epoch, batch).tolist()

    def batch(self, epoch: int, number: int) -> NDArray[np.int64]:
        """The images of one batch of this process, int64 (P·K,)."""
        # A block of batches at once shares numpy's fixed cost per call.
        first = number - number % _BLOCK
        if self._block is None or self._block[0] != (epoch, first):
            mine = slice(self.rank * self.classes_per_batch, (self.rank + 1) * self.classes_per_batch)
            last = min(first + _BLOCK, self.batches_per_epoch)
            pairs = [self._global_classes(epoch, batch) for batch in range(first, last)]
            classes = np.concatenate([pair[0][mine] for pair in pairs])
            visits = np.concatenate([pair[1][mine] for pair in pairs])
            drawn = self._images(classes, visits, epoch if self.regroup else 0)
            self._block = ((epoch, first), drawn.reshape(last - first, -1))
        images: NDArray[np.int64] = self._block[1][number - first]
        return images

    def _global_classes(self, epoch: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Classes of the global batch and their numbers of earlier visits, each int64 (world_size·P,)."""
        size, total = self.classes_per_batch * self.world_size, len(self._classes)
        first = (number if self.regroup else epoch * self.batches_per_epoch + number) * size
        index, offset = divmod(first, total)
        stream = epoch + 1 if self.regroup else 0
        head = self._order(stream, index)[offset : offset + size]
        visits = np.full(size, index, dtype=np.int64)
        if len(head) < size:
            visits[len(head) :] += 1
            head = np.concatenate([head, self._order(stream, index + 1)[: size - len(head)]])
        return self._classes[head], visits

    def _order(self, stream: int, index: int) -> NDArray[np.int64]:
        """The order of the index-th pass over the classes, as positions in ``_classes``.

        A pass begins within a batch where the number of classes is not a multiple of the batch's. Its first
        classes must then differ from the last ones of the previous pass, which in turn depends on the one
        before it. With the classes of at least three batches, this exchange never reaches the end of a pass,
        so that one previous pass suffices.
        """
        size, total = self.classes_per_batch * self.world_size, len(self._classes)
        if (stream, index) in self._passes:
            return self._passes[stream, index]
        if (stream, index - 1) in self._passes:
            at, order = index - 1, self._passes[stream, index - 1]
        else:
            at = max(0, index - 1) if total >= 3 * size else 0
            order = self._shuffled(stream, at)
        while at < index:
            at += 1
            tail = order[total - (at * total) % size :]
            order = _disjoint_head(self._shuffled(stream, at), tail, (size - len(tail)) % size)
        # A batch, and the next one, needs at most two passes.
        kept = {key: value for key, value in self._passes.items() if key == (stream, index - 1)}
        self._passes = {**kept, (stream, index): order}
        return order

    def _shuffled(self, stream: int, index: int) -> NDArray[np.int64]:
        rng = np.random.default_rng((self.seed, _CLASSES, stream, index))
        order = rng.permutation(len(self._classes))
        if self._groups is None or self._epoch_of(stream, index) < self.group_from_epoch:
            return order
        of_class = self._groups[self._classes[order]]
        _, group = np.unique(of_class, return_inverse=True)
        return order[np.argsort(rng.permutation(group.max() + 1)[group], kind="stable")]

    def _epoch_of(self, stream: int, index: int) -> int:
        """The epoch in which the index-th pass over the classes begins."""
        if self.regroup:
            return stream - 1
        return (
            index * len(self._classes) // (self.classes_per_batch * self.world_size * self.batches_per_epoch)
        )

    def _images(
        self, classes: NDArray[np.int64], visits: NDArray[np.int64], stream: int
    ) -> NDArray[np.int64]:
        """K images of each class, int64 (len(classes), K)."""
        counts = self._counts[classes][:, None]
        per_pass = np.maximum(counts // self.samples_per_class, 1)
        index, visit = np.divmod(visits[:, None], per_pass)
        position = (visit * self.samples_per_class + np.arange(self.samples_per_class)) % counts
        keys = derive(self.seed, _IMAGES, stream, classes[:, None], index)
        shape = position.shape
        chosen = permuted(position, np.broadcast_to(counts, shape), np.broadcast_to(keys, shape))
        return self._rows[self._start[classes][:, None] + chosen]


def _eligible(
    counts: NDArray[np.int64], needed: int, policy: SmallClasses, names: Sequence[str] | None
) -> NDArray[np.int64]:
    present = np.flatnonzero(counts)
    small = present[counts[present] < needed]
    if policy == "repeat" or not len(small):
        return present
    if policy == "skip":
        return present[counts[present] >= needed]
    listed = ", ".join(str(names[c]) if names else f"class {c}" for c in small[:5])
    more = f" and {len(small) - 5} more" if len(small) > 5 else ""
    raise InputError(
        f"{len(small)} classes have fewer than samples_per_class={needed} images ({listed}{more}); "
        'add images, lower samples_per_class, or set small_classes to "repeat" or "skip"'
    )


def _disjoint_head(order: NDArray[np.int64], tail: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Move members of ``tail`` out of the first ``length`` positions, with as few exchanges as possible."""
    if not len(tail):
        return order
    clash = np.flatnonzero(np.isin(order[:length], tail))
    if not len(clash):
        return order
    free = length + np.flatnonzero(~np.isin(order[length:], tail))[: len(clash)]
    order = order.copy()
    order[clash], order[free] = order[free], order[clash]
    return order
