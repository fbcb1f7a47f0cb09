"""A network that normalizes pixels itself, for exported graphs that take uint8 images."""

import torch
from torch import Tensor, nn

from models.preprocess import Preprocess


class PixelNetwork(nn.Module):
    """Normalizes pixels, then embeds.

    Decoding, rotation, conversion and resizing stay outside: the input is
    ``Preprocess.tensor(Preprocess.open(image))``.

    Args:
        network: float32 (B, C, H, W) → (B, dim).
        preprocess: its mean and standard deviation are built in.

    Shape: uint8 (B, C, H, W) → (B, dim).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network = network
        shape = (1, preprocess.channels, 1, 1)
        self.register_buffer("mean", torch.tensor(preprocess.mean).mul_(255.0).view(shape))
        self.register_buffer("std", torch.tensor(preprocess.std).mul_(255.0).view(shape))

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed uint8 pixels (B, C, H, W) in 0…255 as (B, dim)."""
        vectors: Tensor = self.network((pixels.float() - self.mean) / self.std)
        return vectors
