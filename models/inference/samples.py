"""Images made of random numbers, for checks that must not wait for data."""

import torch
from torch import Tensor
from torch.nn import functional


def sample_pixels(channels: int, size: int, count: int, seed: int = 0) -> Tensor:
    """Images with coarse shapes under fine noise: plain noise would leave most of a network's range unused.

    Args:
        channels: of each image.
        size: side of each image, in pixels.
        count: how many.
        seed: of the random numbers.

    Returns:
        uint8 (count, channels, size, size).
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    shapes = functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    noise = torch.rand(count, channels, size, size, generator=generator)
    return ((shapes * 0.8 + noise * 0.2) * 255).round().to(torch.uint8)
