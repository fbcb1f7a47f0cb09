"""Random changes of light, colour and detail, for a whole batch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Color:
    """Ranges of random changes of pixels; every value is drawn uniformly for each image."""

    brightness: float = 0.0  # factor within 1 ± brightness
    contrast: float = 0.0  # factor within 1 ± contrast, about the image's mean
    saturation: float = 0.0  # factor within 1 ± saturation, about grey; colour images only
    grey: float = 0.0  # probability of conversion to grey
    blur: float = 0.0  # probability of a 3×3 blur
    weight: float = 0.0  # largest share of a 3×3 maximum or minimum, which widens or thins strokes
    noise: float = 0.0  # largest standard deviation of pixel noise, for values in 0…1
    erase: float = 0.0  # probability that a rectangle is replaced by the image's mean

    numbers: ClassVar[int] = 14  # random numbers for each image; the fifth is not used

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        """Change a batch.

        Args:
            images: float32 (B, C, H, W) in 0…1.
            random: Uniform in [0, 1), float32 (B, ``numbers``).

        Returns:
            float32 (B, C, H, W) in 0…1.
        """
        r = random[:, :, None, None, None]
        if self.weight:
            wide, thin = _neighbourhood(images, torch.maximum), _neighbourhood(images, torch.minimum)
            share = (2 * r[:, 0] - 1) * self.weight
            images = images + share.clamp(min=0) * (wide - images) - share.clamp(max=0) * (thin - images)
        if self.blur:
            images = torch.where(r[:, 1] < self.blur, _softened(images), images)
        if images.shape[1] == 3 and (self.saturation or self.grey):
            luma = (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
            factor = torch.where(r[:, 3] < self.grey, 0.0, 1 + (2 * r[:, 2] - 1) * self.saturation)
            images = luma + (images - luma) * factor
        if self.contrast:
            mean = images.mean((1, 2, 3), keepdim=True)
            images = mean + (images - mean) * (1 + (2 * r[:, 5] - 1) * self.contrast)
        if self.brightness:
            images = images * (1 + (2 * r[:, 6] - 1) * self.brightness)
        if self.noise:
            images = images + _noise_like(images, random[:, 8]) * r[:, 7] * self.noise
        if self.erase:
            images = torch.where(
                _rectangle(images, random[:, 9:]) & (r[:, 13] < self.erase),
                images.mean((1, 2, 3), keepdim=True),
                images,
            )
        return images.clamp(0, 1)


def _neighbourhood(images: Tensor, extreme: Callable[..., Tensor]) -> Tensor:
    """The maximum or minimum of each 3×3 neighbourhood; ten times faster than max_pool2d on a CPU."""
    for axis in (-1, -2):
        size = images.shape[axis]
        result = images.clone()
        later, earlier = result.narrow(axis, 1, size - 1), result.narrow(axis, 0, size - 1)
        extreme(later, images.narrow(axis, 0, size - 1), out=later)
        extreme(earlier, images.narrow(axis, 1, size - 1), out=earlier)
        images = result
    return images


def _softened(images: Tensor) -> Tensor:
    """The mean of each 3×3 neighbourhood; border pixels are repeated."""
    for axis in (-1, -2):
        size = images.shape[axis]
        ends = images.narrow(axis, 0, 1), images.narrow(axis, size - 1, 1)
        padded = torch.cat([ends[0], images, ends[1]], dim=axis)
        images = (padded.narrow(axis, 0, size) + images + padded.narrow(axis, 2, size)) / 3
    return images


def _noise_like(images: Tensor, seeds: Tensor) -> Tensor:
    """Unit-variance noise of the images' shape, determined by one number for each image.

    Drawing Gaussian noise would cost more than everything else here; windows of a fixed table suffice.
    """
    length = images[0].numel()
    table = _noise_table(length)
    starts = (seeds * (len(table) - length)).long().tolist()
    return torch.stack([table[start : start + length] for start in starts]).reshape(images.shape)


@cache
def _noise_table(length: int) -> Tensor:
    return torch.randn(length + (1 << 16), generator=torch.Generator().manual_seed(0))


def _rectangle(images: Tensor, random: Tensor) -> Tensor:
    """Masks, bool (B, 1, H, W), of a rectangle of 10 % to 40 % of each side."""
    height, width = images.shape[-2:]
    size = 0.1 + 0.3 * random[:, :2]
    start = random[:, 2:4] * (1 - size)
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    down = (rows >= start[:, :1]) & (rows < start[:, :1] + size[:, :1])
    across = (columns >= start[:, 1:2]) & (columns < start[:, 1:2] + size[:, 1:2])
    return down[:, None, :, None] & across[:, None, None, :]
