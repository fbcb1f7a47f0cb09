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
    """

    def __init__(
        self, setting: Setting, images: Images, preprocess: Preprocess, seed: int, partition: Partition
    ) -> None:
        self.images, self.preprocess, self.seed, self.partition = images, preprocess, seed, partition
        self.classes, self.each = setting.classes_per_step, setting.images_per_class
        self.sampler = PKBatchSampler(images.labels, self.classes, self.each, setting.steps, seed)
        self.geometry = None if setting.augmentation is None else Geometry(**setting.augmentation)

    @property
    def groups(self) -> int:
        """How many groups a batch has."""
        return self.classes * self.each // self.partition.size

    def __getitem__(self, step: int) -> Batch:
        drawn = self.sampler.batch(0, step)
        order = self.partition.order(self.classes, self.each, (self.seed, step))
        keys = derive(self.seed, _AUGMENT, step, np.arange(len(drawn)))
        return self._make(drawn[order], keys[order])

    def _make(self, items: NDArray[np.int64], keys: NDArray[np.uint64]) -> Batch:
        pixels = self.images.pixels[torch.from_numpy(items)]
        if self.geometry is not None:
            pixels = self.geometry(
                pixels.float() / 255, torch.from_numpy(uniform(keys, self.geometry.numbers))
            )
        labels = torch.from_numpy(self.images.labels[items])
        return Batch(self.preprocess.normalize(pixels), labels)
