"""Conv-4: the four-block network of few-shot learning (Vinyals et al. 2016), for images from 16 px."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from models.errors import InputError


class ConvBlock(nn.Sequential):
    """3×3 convolution, batch normalization, 2×2 max-pooling (with ``pool``), ReLU.

    Pooling comes before the ReLU: the two commute, and the ReLU then processes a quarter of the elements.
    ``pool_before_norm`` also pools before normalizing. This changes the network, since the statistics are
    those of the maxima; normalization then costs a quarter.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, pool: bool = True, pool_before_norm: bool = False
    ) -> None:
        middle: list[nn.Module] = [nn.BatchNorm2d(out_channels)]
        if pool:
            middle.insert(0 if pool_before_norm else 1, nn.MaxPool2d(2))
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), *middle, nn.ReLU(inplace=True)
        )


class ResidualBlock(nn.Module):
    """x + ReLU(norm(3×3 convolution of x)): adds depth after a pooled block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = ConvBlock(channels, channels, pool=False)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, C, H, W) → (B, C, H, W)."""
        changed: Tensor = self.change(images)
        return images + changed


class Conv4(nn.Module):
    """Four blocks of convolution, normalization, pooling and ReLU; each pooling halves the image.

    Args:
        in_channels: channels of the input.
        width: channels of every block, or one number for each block.
        pooling: "average" takes the mean of the last map, so that any size from 16 px fits; "flatten" keeps
            every position and needs `image_size`; "multiscale_stats" takes mean and standard deviation of the
            input and of every block's output, so that the embedding sees colour and texture, which
            distinguish products, as well as shape.
        image_size: of the input in pixels, a square's side or [height, width]; only "flatten" uses it.
        num_pools: the first so many blocks pool. With 3, "flatten" keeps four times as many positions, which
            only the head pays for.
        pool_before_norm: blocks pool before they normalize.
        residuals: number of residual convolutions after each block, one number or four. As in ResNet-9 (Page
            2018), depth is cheap where the maps are already pooled.

    Raises:
        InputError: an argument is out of range, or "flatten" has no `image_size`.

    Shape: (B, in_channels, H, W) → (B, num_features).
    """

    def __init__(
        self,
        in_channels: int = 3,
        width: int | list[int] = 64,
        pooling: Literal["average", "flatten", "multiscale_stats"] = "average",
        image_size: int | list[int] | None = None,
        num_pools: int = 4,
        pool_before_norm: bool = False,
        residuals: int | list[int] = 0,
    ) -> None:
        super().__init__()
        widths, depths = _for_each_block("width", width), _for_each_block("residuals", residuals)
        if not 0 <= num_pools <= 4:
            raise InputError(f"conv4: num_pools is 0 to 4, not {num_pools}")
        blocks: list[nn.Module] = []
        for number, (before, after, depth) in enumerate(
            zip([in_channels, *widths], widths, depths, strict=False)
        ):
            block = ConvBlock(before, after, pool=number < num_pools, pool_before_norm=pool_before_norm)
            # Without residuals the block is not wrapped, so that older weights keep their names.
            refined = nn.Sequential(block, *(ResidualBlock(after) for _ in range(depth)))
            blocks.append(refined if depth else block)
        self.blocks = nn.Sequential(*blocks)
        self.pool: nn.Module
        if pooling == "average":
            self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.num_features = widths[-1]
        elif pooling == "flatten":
            sides = [image_size] * 2 if isinstance(image_size, int) else image_size or []
            if len(sides) != 2 or min(sides) < 16:
                raise InputError(
                    "conv4: pooling 'flatten' needs image_size, the input's side or [height, width] (>= 16)"
                )
            self.pool = nn.Flatten()
            self.num_features = widths[-1] * math.prod(side // 2**num_pools for side in sides)
        elif pooling == "multiscale_stats":
            self.num_features = 2 * sum([in_channels, *widths])
            # The statistics of pixels and of blocks' outputs differ in scale.
            self.pool = nn.BatchNorm1d(self.num_features)
        else:
            raise InputError(f"conv4: pooling is average, flatten or multiscale_stats, not {pooling!r}")
        self.multiscale = pooling == "multiscale_stats"

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (B, C, H, W) as features (B, num_features)."""
        if not self.multiscale:
            features: Tensor = self.pool(self.blocks(images))
            return features
        outputs = [images]
        for block in self.blocks:
            outputs.append(block(outputs[-1]))
        # Variances need more than half precision; 1e-6 keeps the root's gradient finite on constant maps.
        wide = torch.promote_types(images.dtype, torch.float32)
        flat = [output.to(wide).flatten(2) for output in outputs]
        means = [level.mean(2) for level in flat]
        deviations = [(level.var(2, correction=0) + 1e-6).sqrt() for level in flat]
        pooled: Tensor = self.pool(torch.cat([*means, *deviations], 1))
        return pooled


def _for_each_block(name: str, value: int | list[int]) -> list[int]:
    values = [value] * 4 if isinstance(value, int) else list(value)
    if len(values) != 4 or min(values) < 0:
        raise InputError(f"conv4: {name} takes one number or four, none below zero, not {value}")
    return values
