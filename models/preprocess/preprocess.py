"""The inference transform and its settings."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from PIL import Image, ImageOps

from models.errors import InputError
from models.preprocess.content import content_box
from models.preprocess.decode import BROKEN, WHITE, ColorMode, DecodeLimits, ImageError, decode_image, upright
from models.renamed import VALUES, renamed

if TYPE_CHECKING:
    from torch import Tensor

ResizeMode = Literal["crop", "pad", "stretch", "content_crop"]
Interpolation = Literal["bilinear", "bicubic", "lanczos"]

# Pillow reads an opened file at the first use of its pixels, and two threads must not do so at once.
_LOADING = threading.Lock()

_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    # ImageNet's, as for most pretrained backbones.
    "RGB": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "L": ((0.5,), (0.5,)),
}


@dataclass(frozen=True)
class Preprocess:
    """Decode, rotate by EXIF, convert, resize to one size and normalize.

    Attributes:
        size: Of the network's input, in pixels: the side of a square, or (height, width). Equal sides are
            stored as one number.
        mode: "RGB" (3 channels) or "L" (grey, 1 channel); transparency is laid on white.
        resize_mode: How images get the input's aspect ratio: "crop" the centre, "pad" with white, "stretch",
            or "content_crop" to the content on a plain background (:func:`content_box`).
        mean: Per channel, subtracted from values in [0, 1]; by default ImageNet's for RGB and 0.5 for grey.
        std: Per channel, divisor.
        limits: Checked before decoding.
        interpolation: Of the resize: "bilinear", "bicubic" or "lanczos"; take that of pretrained weights.
        white_level: Value of white in grey images of more than 8 bits, see :func:`upright`; 4095 for 12-bit
            cameras.

    Raises:
        InputError: A setting is unknown or out of range.
    """

    size: int | Sequence[int] = 64
    mode: ColorMode = "RGB"
    resize_mode: ResizeMode = "crop"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    interpolation: Interpolation = "bilinear"
    white_level: int = WHITE

    def __post_init__(self) -> None:
        if self.mode not in _STATISTICS:
            raise InputError(
                f"preprocess: mode {self.mode!r} is neither RGB nor L; RGB lays transparency on white"
            )
        for name, kind in (("resize_mode", ResizeMode), ("interpolation", Interpolation)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise InputError(f"preprocess: {name} {getattr(self, name)!r} is none of {known}")
        object.__setattr__(self, "size", _canonical_size(self.size))
        if self.white_level < 1:
            raise InputError(
                f"preprocess: white_level {self.white_level} is not positive; 16 bits have {WHITE}"
            )
        mean, std = _STATISTICS[self.mode]
        object.__setattr__(self, "mean", tuple(self.mean) or mean)
        object.__setattr__(self, "std", tuple(self.std) or std)
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise InputError(
                f"preprocess: mode {self.mode} needs {self.channels} values of mean and of std (positive)"
            )
        if not all(0 <= value <= 1 for value in self.mean):
            raise InputError(f"preprocess: mean {list(self.mean)} is outside 0…1: divide mean and std by 255")

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return len(self.mode)

    @property
    def height(self) -> int:
        """Of the network's input, in pixels."""
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        """Of the network's input, in pixels."""
        return self.size if isinstance(self.size, int) else self.size[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the network's input: (channels, height, width)."""
        return self.channels, self.height, self.width

    def open(self, source: bytes | Path | Image.Image) -> Image.Image:
        """Decode and resize; the result has ``height`` and ``width``, in ``mode``.

        Raises:
            ImageError: See :func:`decode_image`.
        """
        if isinstance(source, Image.Image):
            try:
                with _LOADING:
                    source.load()
            except BROKEN as error:
                raise ImageError(f"image: broken, truncated or closed ({error})") from error
            image = upright(source, self.mode, self.white_level)
        else:
            # The size of the content is unknown before decoding.
            at_least = None if self.resize_mode == "content_crop" else max(self.height, self.width)
            image = decode_image(
                source, self.mode, self.limits, at_least=at_least, white_level=self.white_level
            )
        target = (self.width, self.height)
        if self.resize_mode == "content_crop":
            image = content_box(image, self.height, self.width)
        if image.size == target:
            return image
        method = Image.Resampling[self.interpolation.upper()]
        if self.resize_mode == "crop":
            return ImageOps.fit(image, target, method)
        if self.resize_mode == "pad":
            white = "white" if self.mode == "RGB" else 255
            return ImageOps.pad(image, target, method, color=white)
        return image.resize(target, method)

    def tensor(self, image: Image.Image) -> "Tensor":
        """Pixels as uint8 of shape (channels, height, width)."""
        # Imported here, because decoding alone does not need torch.
        import torch

        pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()

    def normalize(self, batch: "Tensor") -> "Tensor":
        """Normalize pixels of shape (…, channels, height, width) to float32.

        Args:
            batch: uint8 in 0…255, or floating point in 0…1.
        """
        import torch

        scale = 255.0 if batch.dtype == torch.uint8 else 1.0
        mean = torch.tensor(self.mean, device=batch.device).mul_(scale)[:, None, None]
        std = torch.tensor(self.std, device=batch.device).mul_(scale)[:, None, None]
        return (batch.float() - mean) / std

    def __call__(self, source: bytes | Path | Image.Image) -> "Tensor":
        """One image as the network's input, float32 of shape (channels, height, width).

        Raises:
            ImageError: See :func:`decode_image`.
        """
        return self.normalize(self.tensor(self.open(source)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values for the bundle."""
        values = asdict(self)
        values["size"] = self.size if isinstance(self.size, int) else list(self.size)
        # Left out where they are the default, so that the fingerprints of older bundles stay valid.
        for key, usual in (("interpolation", "bilinear"), ("white_level", WHITE)):
            if values[key] == usual:
                del values[key]
        return values

    def fingerprinted(self) -> dict[str, Any]:
        """The settings that determine the network's input, as the first bundles spelled them.

        So their fingerprints stay valid. The limits are left out: they do not change an embedding.
        """
        values = self.to_dict()
        del values["limits"]
        mode = values.pop("resize_mode")
        former = {new: old for old, new in VALUES["resize_mode"].items()}
        return values | {"fit": former.get(mode, mode)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Preprocess":
        """The inverse of :meth:`to_dict`; also reads ``resize_mode`` under its former name ``fit``.

        Raises:
            InputError: Unknown or unusable settings.
        """
        values = renamed("Preprocess", settings)
        try:
            limits = DecodeLimits(**values.pop("limits", {}))
            for key in ("mean", "std"):
                values[key] = tuple(float(value) for value in values.get(key, ()))
            return cls(**values, limits=limits)
        except TypeError as error:
            raise InputError(f"preprocess settings: {error}") from error


def _canonical_size(size: int | Sequence[int]) -> int | tuple[int, int]:
    """A side, or (height, width) where they differ."""
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2 or not all(isinstance(side, int) and 1 <= side <= 4096 for side in sides):
        raise InputError(f"preprocess: size {size}: give a side or [height, width], none outside 1…4096")
    height, width = sides
    return height if height == width else (height, width)
