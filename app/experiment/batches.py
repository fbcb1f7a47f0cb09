"""The gradient batches of a run, and how each is divided into normalization groups.

Images and augmentation are the same whatever the normalization and the groups.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.experiment.experiment_config import Setting
from app.experiment.loading import Images
from data.augment.geometry import Geometry
from data.counter_rng import derive, uniform
from data.sampling import PKBatchSampler
from models.errors import InputError
from models.preprocess import Preprocess

# Keys of the random streams of augmentations and of shuffled groups.
_AUGMENT = 3
_SHUFFLE = 7


@dataclass(frozen=True)
class Partition:
    """Groups of equal size; only which images share a group differs between partitions."""

    size: int  # images in a group
    classes: int | None = None  # classes in a group, of size / classes images; None shuffles the whole batch

    def groups(self, classes: int, images: int, key: tuple[int, ...]) -> NDArray[np.int64]:
        """The groups of a batch that holds ``classes`` runs of ``images`` images of one class.

        They are positions in the batch, int64 (number of groups, size); ``key`` is that of a random choice.

        Raises:
            InputError: the batch cannot be divided so.
        """
        total = classes * images
        if self.size < 1 or total % self.size:
            raise InputError(
                f"a batch of {total} images has no groups of {self.size}; let the size divide it"
            )
        if self.classes is None:
            of_group = np.random.default_rng((_SHUFFLE, *key)).permutation(total)
        else:
            of_group = self._by_class(classes, images)
        return of_group.reshape(-1, self.size)

    @staticmethod
    def interleaved(groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Groups (G, size) in the order in which position i is of group i modulo G.

        A contiguous tensor (B, C, H, W) in this order, viewed as (size, G · C, H, W), has each group in
        channels of its own.
        """
        return groups.T.ravel()

    def _by_class(self, classes: int, images: int) -> NDArray[np.int64]:
        """Positions group by group."""
        inside = self.classes or 1
        each = self.size // inside
        if self.size % inside or images % each or classes % inside:
            raise InputError(
                f"groups of {inside} classes in {self.size} images do not divide {classes} classes × "
                f"{images} images evenly"
            )
        chunks = np.arange(classes * images).reshape(classes, images // each, each)
        return chunks.transpose(1, 0, 2).ravel()


@dataclass(frozen=True)
class Batch:
    """One step's input."""

    images: Tensor  # float32 (B, C, H, W), preprocessed, its groups interleaved
    labels: Tensor  # int64 (B,)


def partition_of(setting: Setting) -> Partition:
    """The normalization groups of a variant; without any, the whole batch is one."""
    whole = setting.classes_per_step * setting.images_per_class
    groups = setting.groups
    return Partition(whole) if groups is None else Partition(groups.size, groups.classes)


class GradientBatches:
    """The batches of a run, by step; they follow from (seed, step), so every variant sees the same.

    Raises:
        InputError: the groups of a step cannot be gone through in so many passes.
    """

    def __init__(
        self, setting: Setting, images: Images, preprocess: Preprocess, seed: int, device: str = "cpu"
    ) -> None:
        self.images, self.preprocess, self.seed, self.device = images, preprocess, seed, device
        self.partition = partition_of(setting)
        self.classes, self.each = setting.classes_per_step, setting.images_per_class
        self.sampler = PKBatchSampler(images.labels, self.classes, self.each, setting.steps, seed)
        groups = self.classes * self.each // self.partition.size
        self.consecutive = setting.groups is not None and setting.groups.consecutive
        self.shared_momentum = setting.groups.shared_gradient_momentum if setting.groups else None
        if (self.consecutive or self.shared_momentum is not None) and setting.passes > 1:
            raise InputError("groups that are consecutive or share gradient statistics want passes: 1")
        if self.consecutive and self.shared_momentum is not None:
            raise InputError("consecutive groups cannot share gradient statistics; leave out one of the two")
        self.passes = groups if self.consecutive else setting.passes
        if groups % self.passes:
            raise InputError(f"{self.passes} passes do not divide a step's groups evenly")
        self.geometry = None if setting.augmentation is None else Geometry(**setting.augmentation)

    @property
    def groups(self) -> int:
        """How many groups a pass has."""
        return self.classes * self.each // self.partition.size // self.passes

    def __getitem__(self, step: int) -> list[Batch]:
        """A step's batch, one for each pass."""
        drawn = self.sampler.batch(0, step)
        groups = self.partition.groups(self.classes, self.each, (self.seed, step))
        keys = derive(self.seed, _AUGMENT, step, np.arange(len(drawn)))
        orders = [self.partition.interleaved(part) for part in np.split(groups, self.passes)]
        return [self._make(drawn[order], keys[order]) for order in orders]

    def _make(self, items: NDArray[np.int64], keys: NDArray[np.uint64]) -> Batch:
        pixels = self.images.take(items)
        if self.geometry is not None:
            pixels = self.geometry(
                pixels.float() / 255, torch.from_numpy(uniform(keys, self.geometry.numbers))
            )
        labels = torch.from_numpy(self.images.labels[items])
        return Batch(self.preprocess.normalize(pixels).to(self.device), labels.to(self.device))
