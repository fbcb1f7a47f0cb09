"""Random affine and elastic transforms of a whole batch, in one sampling grid."""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Geometry:
    """Ranges of random transforms; every value is drawn uniformly for each image."""

    degrees: float = 0.0  # largest rotation either way
    scale: tuple[float, float] = (1.0, 1.0)  # smallest and largest factor of the size
    stretch: float = 0.0  # the aspect ratio changes by a factor of up to 1 + stretch, either way
    shear: float = 0.0  # largest shear either way, in degrees
    shift: float = 0.0  # largest shift either way, as a share of the image's side
    flip: float = 0.0  # probability of a left-right flip
    elastic: float = 0.0  # largest displacement by a smooth random field, as a share of the image's side
    reflect: bool = False  # continue the image by its reflection instead of its border pixels

    # Random numbers for each image: seven for the affine map, and the knots of the elastic field.
    KNOTS = 4

    @property
    def numbers(self) -> int:
        """Number of random numbers for each image."""
        return 7 + (2 * self.KNOTS**2 if self.elastic else 0)

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        """Change a batch.

        Args:
            images: float32 (B, C, H, W).
            random: Uniform in [0, 1), float32 (B, ``numbers``).

        Returns:
            float32 (B, C, H, W).
        """
        height, width = images.shape[-2:]
        x, y = _centres(width)[None, None, :, None], _centres(height)[None, :, None, None]
        matrix = self._matrix(random)[:, None, None]
        grid = x * matrix[..., 0] + y * matrix[..., 1] + matrix[..., 2]
        if self.elastic:
            knots = (2 * random[:, 7:] - 1).reshape(-1, 2, self.KNOTS, self.KNOTS) * 2 * self.elastic
            field = _spread(height, self.KNOTS) @ knots @ _spread(width, self.KNOTS).T
            grid = grid + field.permute(0, 2, 3, 1)
        padding = "reflection" if self.reflect else "border"
        return functional.grid_sample(
            images, grid, mode="bilinear", padding_mode=padding, align_corners=False
        )

    def _matrix(self, random: Tensor) -> Tensor:
        """Output to input coordinates in [−1, 1], (B, 2, 3)."""
        signed = 2 * random - 1
        angle = signed[:, 0] * math.radians(self.degrees)
        low, high = math.log(self.scale[0]), math.log(self.scale[1])
        zoom = torch.exp(low + random[:, 1] * (high - low))
        stretch = torch.exp(signed[:, 2] * math.log1p(self.stretch) / 2)
        shear = torch.tan(signed[:, 3] * math.radians(self.shear))
        flip = torch.where(random[:, 6] < self.flip, -1.0, 1.0)
        cos, sin = torch.cos(angle), torch.sin(angle)
        across, down = flip / (zoom * stretch), stretch / zoom
        rows = [
            torch.stack([cos * across, (shear * cos - sin) * down, signed[:, 4] * 2 * self.shift], dim=1),
            torch.stack([sin * across, (shear * sin + cos) * down, signed[:, 5] * 2 * self.shift], dim=1),
        ]
        return torch.stack(rows, dim=1)


def _centres(size: int) -> Tensor:
    """Pixel centres along one axis, in [−1, 1]."""
    return (2 * torch.arange(size) + 1) / size - 1


@cache
def _spread(size: int, knots: int) -> Tensor:
    """Cubic interpolation along one axis as a matrix (size, knots): products are faster than interpolate."""
    eye = torch.eye(knots)[None, None]
    return functional.interpolate(eye, size=(size, knots), mode="bicubic", align_corners=True)[0, 0]
