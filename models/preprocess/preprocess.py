"""The inference transform and its settings."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from models.errors import InputError
from models.preprocess.content import content_square
from models.preprocess.decode import ColorMode, DecodeLimits, decode_image, flatten

Fit = Literal["crop", "pad", "squash", "content"]
Interpolation = Literal["bilinear", "bicubic", "lanczos"]

_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    # ImageNet's, so that pretrained backbones see what they were trained on.
    "RGB": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "L": ((0.5,), (0.5,)),
}


@dataclass(frozen=True)
class Preprocess:
    """Decode, turn upright, convert, resize to a square and normalize.

    Attributes:
        size: Side of the square input, in pixels.
        mode: "RGB" (3 channels) or "L" (grey, 1 channel).
        fit: How a rectangle becomes a square: "crop" the centre, "pad" with white, "squash", or "content",
            which cuts out what stands on a plain background (:func:`content_square`).
        mean: Per channel, subtracted from values in [0, 1]; by default ImageNet's for RGB and 0.5 for grey.
        std: Per channel, divided by.
        limits: What is refused before decoding.
        interpolation: Of the resize: "bilinear", "bicubic" or "lanczos"; pretrained networks want their own.
    """

    size: int = 64
    mode: ColorMode = "RGB"
    fit: Fit = "crop"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if self.mode not in _STATISTICS:
            raise InputError(f"preprocess: mode {self.mode!r} is neither RGB nor L")
        if self.fit not in get_args(Fit):
            raise InputError(f"preprocess: fit {self.fit!r} is none of {', '.join(get_args(Fit))}")
        if self.interpolation not in get_args(Interpolation):
            known = ", ".join(get_args(Interpolation))
            raise InputError(f"preprocess: interpolation {self.interpolation!r} is none of {known}")
        if not 1 <= self.size <= 4096:
            raise InputError(f"preprocess: size {self.size} is outside 1…4096")
        mean, std = _STATISTICS[self.mode]
        object.__setattr__(self, "mean", tuple(self.mean) or mean)
        object.__setattr__(self, "std", tuple(self.std) or std)
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise InputError(
                f"preprocess: mode {self.mode} needs {self.channels} values of mean and of std (positive)"
            )

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return len(self.mode)

    def open(self, source: bytes | Path | Image.Image) -> Image.Image:
        """Decode and resize; the result is ``size`` × ``size`` in ``mode``.

        Raises:
            ImageError: See :func:`decode_image`.
        """
        if isinstance(source, Image.Image):
            image = flatten(ImageOps.exif_transpose(source), self.mode)
        else:
            # How much of the image its content fills is not known before it is decoded.
            at_least = None if self.fit == "content" else self.size
            image = decode_image(source, self.mode, self.limits, at_least=at_least)
        target = (self.size, self.size)
        if self.fit == "content":
            image = content_square(image)
        if image.size == target:
            return image
        method = Image.Resampling[self.interpolation.upper()]
        if self.fit == "crop":
            return ImageOps.fit(image, target, method)
        if self.fit == "pad":
            white = "white" if self.mode == "RGB" else 255
            return ImageOps.pad(image, target, method, color=white)
        return image.resize(target, method)

    def tensor(self, image: Image.Image) -> Tensor:
        """Pixels as uint8 of shape (channels, size, size)."""
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()

    def normalize(self, batch: Tensor) -> Tensor:
        """Normalize pixels of shape (…, channels, height, width) to float32.

        Args:
            batch: uint8 in 0…255, or floating point in 0…1.
        """
        scale = 255.0 if batch.dtype == torch.uint8 else 1.0
        mean = torch.tensor(self.mean, device=batch.device).mul_(scale)[:, None, None]
        std = torch.tensor(self.std, device=batch.device).mul_(scale)[:, None, None]
        return (batch.float() - mean) / std

    def __call__(self, source: bytes | Path | Image.Image) -> Tensor:
        """One image as the network's input, float32 of shape (channels, size, size).

        Raises:
            ImageError: See :func:`decode_image`.
        """
        return self.normalize(self.tensor(self.open(source)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for the bundle."""
        values = asdict(self)
        if self.interpolation == "bilinear":
            # Left out: the fingerprints of bundles made before there was a choice stay valid.
            del values["interpolation"]
        return values

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Preprocess":
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: Unknown or unusable settings.
        """
        values = dict(settings)
        try:
            limits = DecodeLimits(**values.pop("limits", {}))
            for key in ("mean", "std"):
                values[key] = _floats(values.get(key, ()))
            return cls(**values, limits=limits)
        except TypeError as error:
            raise InputError(f"preprocess settings: {error}") from error


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
