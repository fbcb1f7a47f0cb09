"""The gradient batches of a run: the same images, augmented the same way, whatever the normalization."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.experiment.images import Images
from app.experiment.partition import Partition
from app.experiment.settings import Setting
from data.augment.geometry import Geometry
from data.counter_rng import derive, uniform
from data.sampling import PKBatchSampler
from models.errors import InputError
from models.preprocess import Preprocess

# Key of the random stream of augmentations.
_AUGMENT = 3


@dataclass(frozen=True)
class Batch:
    """One step's input.

    Attributes:
        images: float32 (B, C, H, W), preprocessed, its groups interleaved.
        labels: int64 (B,).
    """

    images: Tensor
    labels: Tensor


def partition_of(setting: Setting) -> Partition:
    """The normalization groups of an arm; without any, the whole batch is one."""
    whole = setting.classes_per_step * setting.images_per_class
    groups = setting.groups
    return Partition(whole) if groups is None else Partition(groups.size, groups.classes)


class GradientBatches:
    """The batches of a run, by step; they follow from (seed, step), so every arm sees the same.

    Args:
        setting: classes and images in a step, and the augmentation.
        images: to draw from.
        preprocess: normalizes pixels.
        seed: of the run.
        partition: the normalization groups.
        device: where batches go.

    Raises:
        InputError: the groups of a step cannot be gone through in so many passes.
    """

    def __init__(
        self,
        setting: Setting,
        images: Images,
        preprocess: Preprocess,
        seed: int,
        partition: Partition,
        device: str = "cpu",
    ) -> None:
        self.images, self.preprocess, self.seed, self.partition = images, preprocess, seed, partition
        self.device = device
        self.classes, self.each = setting.classes_per_step, setting.images_per_class
        self.sampler = PKBatchSampler(images.labels, self.classes, self.each, setting.steps, seed)
        self.passes = setting.passes
        if self.classes * self.each // partition.size % self.passes:
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
