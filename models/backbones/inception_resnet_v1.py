"""Inception-ResNet-v1 (Szegedy et al. 2016), the network of public FaceNet implementations.

Modules are named as in the facenet-pytorch project, so that its weight files load unchanged.
"""

from typing import Any

import torch
from torch import Tensor, nn


class BasicConv2d(nn.Module):
    """Convolution without bias, batch normalization, ReLU; it keeps the image's size where stride is None."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | None = None,
    ) -> None:
        super().__init__()
        height, width = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
        padding = (height // 2, width // 2) if stride is None else 0
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride or 1, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, in_channels, H, W) → (B, out_channels, H', W')."""
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out


def chain(channels: int, *layers: tuple[Any, ...]) -> nn.Sequential:
    """BasicConv2d layers, each given by its further arguments, of an input of so many channels."""
    before = [channels, *(layer[0] for layer in layers)]
    return nn.Sequential(*(BasicConv2d(n, *layer) for n, layer in zip(before, layers, strict=False)))


class ResidualBlock(nn.Module):
    """Concatenated branches, mapped to the input's width by a 1×1 convolution, scaled and added to the input.

    The branches have ``mixed`` channels together. A small scale keeps wide networks stable. No ReLU follows
    the last block.
    """

    def __init__(
        self, channels: int, branches: list[nn.Module], mixed: int, scale: float, relu: bool
    ) -> None:
        super().__init__()
        self.scale = scale
        self.count = len(branches)
        for number, branch in enumerate(branches):
            setattr(self, f"branch{number}", branch)
        self.conv2d = nn.Conv2d(mixed, channels, kernel_size=1)
        self.relu = nn.ReLU(inplace=False) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, channels, H, W) → the same."""
        mixed = torch.cat([getattr(self, f"branch{number}")(x) for number in range(self.count)], dim=1)
        out: Tensor = self.relu(self.conv2d(mixed) * self.scale + x)
        return out


class Reduction(nn.Module):
    """Branches with stride 2, concatenated with a 3×3 max-pooling of the input."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.count = len(branches)
        for number, branch in enumerate([*branches, nn.MaxPool2d(3, stride=2)]):
            setattr(self, f"branch{number}", branch)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C, H, W) → (B, C', about H/2, about W/2)."""
        return torch.cat([getattr(self, f"branch{number}")(x) for number in range(self.count + 1)], dim=1)


def block35() -> ResidualBlock:
    """Residual block at 35×35 (for 299 px)."""
    branches = [
        BasicConv2d(256, 32, 1),
        chain(256, (32, 1), (32, 3)),
        chain(256, (32, 1), (32, 3), (32, 3)),
    ]
    return ResidualBlock(256, branches, 96, scale=0.17, relu=True)


def block17() -> ResidualBlock:
    """Residual block at 17×17."""
    branches = [BasicConv2d(896, 128, 1), chain(896, (128, 1), (128, (1, 7)), (128, (7, 1)))]
    return ResidualBlock(896, branches, 256, scale=0.10, relu=True)


def block8(scale: float = 0.20, relu: bool = True) -> ResidualBlock:
    """Residual block at 8×8."""
    branches = [BasicConv2d(1792, 192, 1), chain(1792, (192, 1), (192, (1, 3)), (192, (3, 1)))]
    return ResidualBlock(1792, branches, 384, scale, relu)


class InceptionResnetV1(nn.Module):
    """Inception-ResNet-v1 with its 512-dimensional embedding layer.

    Use it with `head: none` and `embedding_dim: 512`.

    Args:
        in_channels: channels of the input.
        dropout: probability before the embedding layer; facenet-pytorch has 0.6.

    Shape: (B, in_channels, H, W), H and W at least 75 (160 is usual) → (B, 512).
    """

    def __init__(self, in_channels: int = 3, dropout: float = 0.6) -> None:
        super().__init__()
        self.num_features = 512
        self.conv2d_1a = BasicConv2d(in_channels, 32, 3, stride=2)
        self.conv2d_2a = BasicConv2d(32, 32, 3, stride=1)
        self.conv2d_2b = BasicConv2d(32, 64, 3)
        self.maxpool_3a = nn.MaxPool2d(3, stride=2)
        self.conv2d_3b = BasicConv2d(64, 80, 1)
        self.conv2d_4a = BasicConv2d(80, 192, 3, stride=1)
        self.conv2d_4b = BasicConv2d(192, 256, 3, stride=2)
        self.repeat_1 = nn.Sequential(*(block35() for _ in range(5)))
        self.mixed_6a = Reduction(
            [BasicConv2d(256, 384, 3, stride=2), chain(256, (192, 1), (192, 3), (256, 3, 2))]
        )
        self.repeat_2 = nn.Sequential(*(block17() for _ in range(10)))
        self.mixed_7a = Reduction(
            [
                chain(896, (256, 1), (384, 3, 2)),
                chain(896, (256, 1), (256, 3, 2)),
                chain(896, (256, 1), (256, 3), (256, 3, 2)),
            ]
        )
        self.repeat_3 = nn.Sequential(*(block8() for _ in range(5)))
        self.block8 = block8(scale=1.0, relu=False)
        self.avgpool_1a = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.last_linear = nn.Linear(1792, 512, bias=False)
        self.last_bn = nn.BatchNorm1d(512, eps=0.001)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (B, C, H, W) as (B, 512), not normalized to length 1."""
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(images)))
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(self.maxpool_3a(x))))
        x = self.mixed_6a(self.repeat_1(x))
        x = self.mixed_7a(self.repeat_2(x))
        x = self.block8(self.repeat_3(x))
        x = self.dropout(self.avgpool_1a(x)).flatten(1)
        embeddings: Tensor = self.last_bn(self.last_linear(x))
        return embeddings
