"""Test-time augmentation: inference averages the embeddings of several views of an image."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.errors import InputError


@dataclass(frozen=True)
class View:
    """One transformed view of an image.

    Attributes:
        degrees: anticlockwise rotation, −180 to 180; the border is repeated outside the image.
        mirror: flip left to right before the rotation.

    Raises:
        InputError: the rotation is out of range, or the view is the image itself.
    """

    degrees: float = 0.0
    mirror: bool = False

    def __post_init__(self) -> None:
        if not -180 <= self.degrees <= 180:
            raise InputError(f"tta: degrees is −180 to 180, not {self.degrees}")
        if not self.degrees and not self.mirror:
            raise InputError("tta: a view that changes nothing; the image itself is always seen")

    def __call__(self, images: Tensor) -> Tensor:
        """Transform images, float (B, C, H, W); shape and dtype do not change."""
        if self.mirror:
            images = images.flip(-1)
        return _turned(images, self.degrees) if self.degrees else images


def as_views(values: Sequence[View | Mapping[str, Any]]) -> tuple[View, ...]:
    """Views from plain JSON values; views are returned unchanged.

    Raises:
        InputError: an unknown key, or a value that is out of range or of another type.
    """
    try:
        return tuple(value if isinstance(value, View) else View(**value) for value in values)
    except TypeError as error:
        raise InputError(f"tta: {error}") from error


def _turned(images: Tensor, degrees: float) -> Tensor:
    height, width = images.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = _centres(width, images)[None, :], _centres(height, images)[:, None]
    # Maps output to input coordinates; the factors keep rectangles from being sheared.
    grid = torch.stack([cos * x - sin * y * (height / width), sin * x * (width / height) + cos * y], dim=-1)
    return functional.grid_sample(
        images,
        grid.expand(images.shape[0], height, width, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )


def _centres(size: int, like: Tensor) -> Tensor:
    """Pixel centres along one axis, in [−1, 1]."""
    return (2 * torch.arange(size, dtype=like.dtype, device=like.device) + 1) / size - 1
