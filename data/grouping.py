"""Batches of confusable classes: by a column of the data, or by the hard-class curriculum."""

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from data.dataset import ImageDataset
from data.loader import ImageLoader
from data.sampling import PKBatchSampler
from data.table import ImageTable
from models.errors import InputError
from models.eval_mode import eval_mode
from models.preprocess import ImageError


def groups_by_column(table: ImageTable, rows: NDArray[np.int64], column: str) -> NDArray[np.int64]:
    """Groups of the classes among ``rows`` by a column of the table, such as "coarse" or "alphabet".

    A class's group is the column's value at its first image.

    Returns:
        Group of each class in the order of their labels, int64 (C,).

    Raises:
        InputError: There is no such column.
    """
    if column not in table.metadata:
        known = ", ".join(table.metadata) or "none"
        raise InputError(f"group_by: the data have no column {column!r}; they have: {known}")
    first = np.unique(table.labels[rows], return_index=True)[1]
    values = table.metadata[column].take(rows[first]).to_pylist()
    return np.unique(np.array([str(value) for value in values]), return_inverse=True)[1].astype(np.int64)


def similarity_groups(
    centroids: NDArray[np.floating], group_size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Groups of similar classes of nearly equal size, by splitting at the median along random directions.

    A random projection tree (Dasgupta and Freund, STOC 2008) in O(C·d·log C). Each direction joins two random
    members, so that it follows the data.

    Args:
        centroids: Mean embedding of each class, float (C, d).
        group_size: Largest group.
        rng: Chooses the directions.

    Returns:
        Group of each class, int64 (C,).
    """
    groups = np.zeros(len(centroids), dtype=np.int64)
    pending, done = [np.arange(len(centroids))], 0
    while pending:
        members = pending.pop()
        if len(members) <= group_size:
            groups[members] = done
            done += 1
            continue
        one, other = centroids[rng.choice(members, 2, replace=False)]
        order = members[np.argsort(centroids[members] @ (one - other), kind="stable")]
        # Split at a multiple of the group size, so that groups are full.
        middle = group_size * max(1, round(len(order) / (2 * group_size)))
        pending += [order[:middle], order[middle:]]
    return groups


class HardClassCurriculum(Callback):
    """Regroups the training classes by their current embeddings, so that batches hold confusable classes.

    Needs ``regroup: true`` in the data settings. A group fills only a part of a batch: with classes_per_batch
    = 32 and group_size = 8, a batch holds four groups.

    Args:
        group_size: Number of classes in a group.
        start_epoch: First epoch with groups: earlier embeddings are not informative.
        every_n_epochs: Number of epochs between regroupings.
        images_per_class: Number of images that a class's centroid is the mean of.
        batch_size: Number of images embedded at once.

    Raises:
        InputError: The data are not ImageDataModule's, or lack ``regroup: true``.
    """

    def __init__(
        self,
        group_size: int = 8,
        start_epoch: int = 1,
        every_n_epochs: int = 1,
        images_per_class: int = 4,
        batch_size: int = 256,
    ) -> None:
        self.group_size, self.start_epoch, self.every_n_epochs = group_size, start_epoch, every_n_epochs
        self.images_per_class, self.batch_size = images_per_class, batch_size

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the groups on rank 0 and broadcast them."""
        epoch = trainer.current_epoch
        if epoch < self.start_epoch or (epoch - self.start_epoch) % self.every_n_epochs:
            return
        loader = trainer.train_dataloader
        if not isinstance(loader, ImageLoader) or not isinstance(loader.batches, PKBatchSampler):
            raise InputError("the hard-class curriculum needs ImageDataModule's training data")
        if not loader.batches.regroup:
            raise InputError("the hard-class curriculum needs the data setting regroup: true")
        groups = None
        if trainer.is_global_zero:
            rng = np.random.default_rng((loader.batches.seed, epoch))
            groups = similarity_groups(self._centroids(loader.dataset, pl_module, rng), self.group_size, rng)
        loader.batches.set_groups(trainer.strategy.broadcast(groups))

    def _centroids(
        self, dataset: ImageDataset, module: LightningModule, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Mean embedding of each class, normalized, float32 (classes, d)."""
        shuffled = rng.permutation(len(dataset))
        labels = dataset.labels[shuffled]
        order = np.argsort(labels, kind="stable")
        position = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
        chosen = shuffled[order][position < self.images_per_class]
        sums: torch.Tensor | None = None
        # Test-time augmentation would cost a forward pass for each view and hardly change a mean.
        embed = getattr(module, "without_tta", module)
        with eval_mode(module), torch.no_grad():
            for start in range(0, len(chosen), self.batch_size):
                images, kept = _images(dataset, chosen[start : start + self.batch_size])
                embedded = embed(images.to(module.device)).float().cpu()
                if sums is None:
                    sums = torch.zeros(int(dataset.labels.max()) + 1, embedded.shape[1])
                sums.index_add_(0, kept, embedded)
        if sums is None:
            raise InputError("the hard-class curriculum found no images")
        return np.asarray(torch.nn.functional.normalize(sums).numpy())


def _images(dataset: ImageDataset, items: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = [], []
    for item in items.tolist():
        try:
            found = dataset[item]
        except ImageError:
            continue  # the loader warns when it draws the image
        images.append(found["image"])
        labels.append(found["label"])
    if not images:
        raise InputError("the hard-class curriculum: none of the images can be read")
    return torch.stack(images), torch.tensor(labels)
