"""Random images, for checks without data."""

import torch
from torch import Tensor
from torch.nn import functional


def sample_pixels(shape: tuple[int, int, int], count: int, seed: int = 0) -> Tensor:
    """Images of coarse shapes with fine noise, which exercise more of a network's range than noise alone.

    Args:
        shape: of each image: (channels, height, width).
        count: number of images.
        seed: of the random numbers.

    Returns:
        uint8 (count, channels, height, width).
    """
    channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    shapes = functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    noise = torch.rand(count, channels, height, width, generator=generator)
    return ((shapes * 0.8 + noise * 0.2) * 255).round().to(torch.uint8)
