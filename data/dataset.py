"""Decoded images of a table's rows, a batch at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data.pixel_cache import PixelCache
from data.table import ImageTable
from models.errors import InputError
from models.preprocess import ImageError, Preprocess

# From uint8 images (B, C, H, W) and a uint64 key for each, (B,), to uint8 or float images of the same shape.
Augmentation = Callable[[Tensor, NDArray[np.uint64]], Tensor]


class Batch(TypedDict):
    """A batch of a loader: ``image`` float32 (B, C, H, W), ``label`` and ``index`` int64 (B,).

    ``index`` is the row in the image table.
    """

    image: Tensor
    label: Tensor
    index: Tensor


@dataclass(frozen=True)
class BatchSpec:
    """A batch to load: its items, int64 (B,), and a random key for each, uint64 (B,)."""

    items: NDArray[np.int64]
    keys: NDArray[np.uint64]


class LoadedBatch(NamedTuple):
    """A batch from a worker, and the reasons why images could not be read, by name.

    It is a tuple, so that torch's loader pins the memory of its tensors.
    """

    batch: Batch
    corrupt: dict[str, str]


class ImageDataset(Dataset[Any]):
    """Images of some rows of a table.

    Args:
        table: All images.
        rows: The table's rows that are this data set's items, int64 (N,).
        labels: Class of each item, int64 (N,), in 0 … num_classes − 1.
        preprocess: Decoding, size and normalization.
        cache: Of the decoded pixels of these items.
        augment: Random changes of a batch, for training.
        rotations: Whether every item occurs four times, rotated by 0°, 90°, 180° and 270°, each rotation with
            classes of its own: item i rotated r times is item r·N + i of class r·num_classes + label. The
            images must be square.
        replace_corrupt: Whether an unreadable image is replaced by another of its class (training) instead of
            left out (evaluation).
    """

    def __init__(
        self,
        table: ImageTable,
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        preprocess: Preprocess,
        *,
        cache: PixelCache | None = None,
        augment: Augmentation | None = None,
        rotations: bool = False,
        replace_corrupt: bool = False,
    ) -> None:
        self.table, self.rows, self.preprocess = table, rows, preprocess
        self.cache, self.augment, self.replace_corrupt = cache, augment, replace_corrupt
        self.labels = labels
        if rotations:
            classes = int(labels.max(initial=-1)) + 1
            self.labels = np.concatenate([labels + turn * classes for turn in range(4)])
        self._base_labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """One item without augmentation: a :class:`Batch`'s entries without the batch dimension.

        Raises:
            ImageError: It cannot be read.
        """
        pixels = self._turned(self.pixels(item % len(self.rows)), item)
        image = self.preprocess.normalize(torch.from_numpy(pixels))
        return {
            "image": image,
            "label": int(self.labels[item]),
            "index": int(self.rows[item % len(self.rows)]),
        }

    def __getitems__(self, spec: BatchSpec | Sequence[int]) -> LoadedBatch | list[dict[str, Any]]:
        """A whole batch at once; for a plain list of items, as from any other loader, a list of items.

        Raises:
            InputError: No image of a class can be read, and corrupt images are to be replaced.
        """
        if not isinstance(spec, BatchSpec):
            return [self[item] for item in spec]
        images, kept, sources = [], [], []
        corrupt: dict[str, str] = {}
        for position, item in enumerate(spec.items):
            base = int(item) % len(self.rows)
            found = self._readable(base, corrupt)
            if found is not None:
                pixels, source = found
                images.append(self._turned(pixels, int(item)))
                kept.append(position)
                sources.append(self.rows[source])
        stacked = np.stack(images) if images else np.zeros((0, *self.preprocess.shape), np.uint8)
        batch = torch.from_numpy(stacked)
        if self.augment is not None and len(images):
            batch = self.augment(batch, spec.keys[kept])
        made: Batch = {
            "image": self.preprocess.normalize(batch),
            "label": torch.from_numpy(self.labels[spec.items[kept]]),
            "index": torch.from_numpy(np.asarray(sources, dtype=np.int64)),
        }
        return LoadedBatch(made, corrupt)

    def pixels(self, base: int) -> NDArray[np.uint8]:
        """Decoded pixels of an item before rotation, uint8 (C, H, W).

        Raises:
            ImageError: It cannot be read.
        """
        if self.cache is not None and (kept := self.cache.get(base)) is not None:
            return kept
        row = int(self.rows[base])
        try:
            decoded = self.preprocess.open(self.table.read(row))
        except ImageError as error:
            raise ImageError(f"{self.table.name(row)}: {error}") from error
        pixels: NDArray[np.uint8] = self.preprocess.tensor(decoded).numpy()
        if self.cache is not None:
            self.cache.put(base, pixels)
        return pixels

    def _turned(self, pixels: NDArray[np.uint8], item: int) -> NDArray[np.uint8]:
        turns = item // len(self.rows)
        return np.ascontiguousarray(np.rot90(pixels, turns, axes=(1, 2))) if turns else pixels

    def _readable(self, base: int, corrupt: dict[str, str]) -> tuple[NDArray[np.uint8], int] | None:
        """The image of an item, or the next readable one of its class, which is the same in every worker."""
        for candidate in self._alternatives(base):
            try:
                return self.pixels(candidate), candidate
            except ImageError as error:
                corrupt[self.table.name(int(self.rows[candidate]))] = str(error)
                if not self.replace_corrupt:
                    return None
        name = self.table.class_names[self.table.labels[self.rows[base]]]
        raise InputError(f"class {name!r}: none of its images can be read; remove the class")

    def _alternatives(self, base: int) -> Iterator[int]:
        yield base
        same = np.flatnonzero(self._base_labels == self._base_labels[base])
        start = int(np.searchsorted(same, base))
        yield from np.roll(same, -start)[1:].tolist()
