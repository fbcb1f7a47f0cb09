"""Changes of light, colour and detail of a whole batch."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Color:
    """How far the pixels of an image vary; every value is drawn uniformly for each image.

    Attributes:
        brightness: Factor within 1 ± brightness.
        contrast: Factor within 1 ± contrast, about the image's mean.
        saturation: Factor within 1 ± saturation, about grey; colour images only.
        grey: Probability of losing all colour.
        invert: Probability of a negative.
        blur: Probability of a 3×3 blur.
        weight: Largest share of a stroke-widening or -thinning 3×3 maximum or minimum.
        noise: Largest standard deviation of pixel noise, of a full range of 1.
        erase: Probability that a rectangle is blanked with the image's mean.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    grey: float = 0.0
    invert: float = 0.0
    blur: float = 0.0
    weight: float = 0.0
    noise: float = 0.0
    erase: float = 0.0

    @property
    def numbers(self) -> int:
        """How many random numbers an image needs."""
        return 14

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        """Change a batch.

        Args:
            images: float32 (B, C, H, W) in 0…1.
            random: Uniform in [0, 1), float32 (B, ``numbers``).
        """
        r = random[:, :, None, None, None]
        if self.weight:
            wide, thin = functional.max_pool2d(images, 3, 1, 1), -functional.max_pool2d(-images, 3, 1, 1)
            share = (2 * r[:, 0] - 1) * self.weight
            images = images + share.clamp(min=0) * (wide - images) - share.clamp(max=0) * (thin - images)
        if self.blur:
            soft = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
            images = torch.where(r[:, 1] < self.blur, soft, images)
        if images.shape[1] == 3 and (self.saturation or self.grey):
            luma = (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
            factor = torch.where(r[:, 3] < self.grey, 0.0, 1 + (2 * r[:, 2] - 1) * self.saturation)
            images = luma + (images - luma) * factor
        if self.invert:
            images = torch.where(r[:, 4] < self.invert, 1 - images, images)
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


def _noise_like(images: Tensor, seeds: Tensor) -> Tensor:
    """Unit-variance noise of a shape like the images', fixed by one number for each image."""
    starts = (seeds * len(_NOISE)).long()
    index = (starts[:, None] + torch.arange(images[0].numel())) % len(_NOISE)
    return _NOISE[index].reshape(images.shape)


def _rectangle(images: Tensor, random: Tensor) -> Tensor:
    """Masks (B, 1, H, W) of a rectangle of up to 40 % of each side."""
    height, width = images.shape[-2:]
    size = 0.1 + 0.3 * random[:, :2]
    start = random[:, 2:4] * (1 - size)
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    down = (rows >= start[:, :1]) & (rows < start[:, :1] + size[:, :1])
    across = (columns >= start[:, 1:2]) & (columns < start[:, 1:2] + size[:, 1:2])
    return down[:, None, :, None] & across[:, None, None, :]


# Drawing fresh Gaussian noise costs more than everything else here; a window into a fixed table does as well.
_NOISE = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
