"""Load a data set as tensors, with the sources and preprocessing that ``kindred fit`` uses."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from app.experiment.experiment_config import Data
from app.progress import without_warnings
from data.dataset import ImageDataset
from data.pixel_cache import open_cache
from data.sources import open_source
from data.sources.source import data_root
from data.splits import Split, class_folds, split_classes, split_images
from data.table import ImageTable
from models.errors import InputError
from models.preprocess import Preprocess

_CACHE_BYTES = 8 * 2**30
_THREADS = 8


@dataclass(frozen=True)
class Images:
    """The images of one split of a data set."""

    labels: NDArray[np.int64]  # (N,)
    # From indices of items to their pixels, uint8 (items, C, H, W).
    take: Callable[[NDArray[np.int64]], Tensor]

    def subset(self, chosen: NDArray[np.int64], labels: NDArray[np.int64] | None = None) -> "Images":
        """The items at ``chosen``, with other labels if these are given."""
        kept = self.labels[chosen] if labels is None else labels
        return Images(kept, lambda items: self.take(chosen[items]))


@dataclass(frozen=True)
class Loaded:
    """A data set."""

    train: Images  # labels 0 … classes − 1
    val: Images  # other images of the same classes, or images of other classes, labelled from 0, too
    classes: int  # number of training classes
    pretrain: Images | None  # of the classes for pretraining
    split_hash: str
    preprocess: Preprocess


def load_images(data: Data) -> Loaded:
    """Decode a data set, or read it from the cache of an earlier run.

    Raises:
        InputError: the data are missing, or cannot be split as asked.
    """
    table = _table(data)
    split = _split(table, data)
    preprocess = Preprocess(data.image_size, data.mode, mean=tuple(data.mean), std=tuple(data.std))
    train = _images(table, split.rows("train"), preprocess, data)
    val = _images(table, split.rows("test" if data.unseen else "val"), preprocess, data)
    pretrain = None
    if data.pretraining:
        pretrain, train = _every_second(train, 0), _every_second(train, 1)
    return Loaded(train, val, int(train.labels.max()) + 1, pretrain, split.hash, preprocess)


def _every_second(images: Images, first: int) -> Images:
    chosen = np.flatnonzero(images.labels % 2 == first)
    return images.subset(chosen, images.labels[chosen] // 2)


def _split(table: ImageTable, data: Data) -> Split:
    if not data.unseen:
        with without_warnings("data.splits"):  # test classes are seen in training: that is intended here
            return split_images(table)
    if data.folds is not None:
        return next(class_folds(table, data.folds, val_fraction=0))
    return split_classes(table, val_fraction=0)


def _table(data: Data) -> ImageTable:
    below = data_root() / data.source
    is_path = "/" in data.source or Path(data.source).suffix != ""
    table = open_source(below if is_path and below.exists() else data.source).table()
    if data.only is not None:
        table = _keep(table, np.flatnonzero(table.split == data.only))
    if data.classes is not None:
        table = _keep(table, np.flatnonzero(table.labels < data.classes))
    if data.unseen:
        return table
    if data.train_images is not None:
        return table.with_column("split", _first_images(table, data.train_images))
    if "part" not in table.rows.column_names:
        raise InputError(f"{data.source}: has no folders train and val; set data.train_images")
    return table.with_column("split", table.rows.column("part"))


def _keep(table: ImageTable, rows: NDArray[np.int64]) -> ImageTable:
    """Keep some rows, and renumber the remaining classes."""
    present, labels = np.unique(table.labels[rows], return_inverse=True)
    kept = table.take(rows).rows
    kept = kept.drop_columns(["label"]).append_column("label", [labels.astype(np.int32)])
    return ImageTable(kept, [table.class_names[c] for c in present], table.roots)


def _first_images(table: ImageTable, count: int) -> NDArray[np.object_]:
    names = np.array([table.name(row) for row in range(len(table))])
    order = np.lexsort((names, table.labels))
    labels = table.labels[order]
    position = np.empty(len(table), dtype=np.int64)
    position[order] = np.arange(len(labels)) - np.searchsorted(labels, labels)
    return np.where(position < count, "train", "val").astype(object)


def _images(table: ImageTable, rows: NDArray[np.int64], preprocess: Preprocess, data: Data) -> Images:
    labels = np.unique(table.labels[rows], return_inverse=True)[1].astype(np.int64)
    cache = open_cache("disk" if data.decode == "once" else "none", table, rows, preprocess, _CACHE_BYTES)
    dataset = ImageDataset(table, rows, labels, preprocess, cache=cache)
    if data.decode == "when needed":
        pool = ThreadPoolExecutor(_THREADS)
        return Images(
            labels, lambda items: torch.from_numpy(np.stack(list(pool.map(dataset.pixels, items.tolist()))))
        )
    done = cache is not None and cache.filled == len(rows)
    items = range(len(rows))
    shown = items if done else track(items, "Decoding images", transient=True)
    pixels = torch.from_numpy(np.stack([dataset.pixels(item) for item in shown]))
    return Images(labels, lambda items: pixels[torch.from_numpy(items)])
