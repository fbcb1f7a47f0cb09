"""Augmentation presets, and lists of torchvision transforms."""

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.augment.color import Color
from data.augment.geometry import Geometry
from data.counter_rng import uniform
from data.dataset import Augmentation
from models.errors import InputError

Preset = Literal["none", "characters", "products", "faces", "photos"]


@dataclass(frozen=True)
class BatchAugmentation:
    """Geometry, then colour, of a whole batch at once: about twenty times faster than image by image.

    The change of an image depends only on its key.
    """

    geometry: Geometry = field(default_factory=Geometry)
    color: Color = field(default_factory=Color)

    def __call__(self, images: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        """Change uint8 images (B, C, H, W); returns float32 in 0…1 of that shape."""
        numbers = self.geometry.numbers + self.color.numbers
        random = torch.from_numpy(uniform(keys, numbers))
        changed = self.geometry(images.float() / 255, random[:, : self.geometry.numbers])
        return self.color(changed, random[:, self.geometry.numbers :])


PRESETS: dict[Preset, BatchAugmentation | None] = {
    "none": None,
    # No flips: they would make other characters.
    "characters": BatchAugmentation(
        Geometry(degrees=12, scale=(0.8, 1.2), stretch=0.2, shear=12, shift=0.08, elastic=0.04),
        Color(weight=0.8),
    ),
    # Products vary in position and are cropped by shelves and hands; their colours distinguish them.
    "products": BatchAugmentation(
        Geometry(degrees=12, scale=(0.7, 2.0), stretch=0.3, shift=0.2, flip=0.5, reflect=True),
        Color(brightness=0.2, contrast=0.2, saturation=0.1, blur=0.2, noise=0.02, erase=0.25),
    ),
    # Aligned faces vary little in pose, but much in light and camera.
    "faces": BatchAugmentation(
        Geometry(degrees=8, scale=(0.9, 1.25), stretch=0.08, shift=0.05, flip=0.5, reflect=True),
        Color(brightness=0.3, contrast=0.3, saturation=0.4, grey=0.1, blur=0.1, noise=0.03, erase=0.15),
    ),
    # For any folder: a little of everything, so that no feature that distinguishes classes is lost.
    "photos": BatchAugmentation(
        Geometry(degrees=10, scale=(0.8, 1.25), stretch=0.15, shear=5, shift=0.08, flip=0.5, reflect=True),
        Color(brightness=0.3, contrast=0.3, saturation=0.3, grey=0.1, blur=0.1, noise=0.02, erase=0.15),
    ),
}


class TransformAugmentation:
    """torchvision transforms (v2), one image after another, each under its own seed."""

    def __init__(self, transforms: list[nn.Module]) -> None:
        self.transforms = transforms

    def __call__(self, images: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        """Change uint8 images (B, C, H, W) one by one; returns uint8, or floats in 0…1, of that shape.

        Raises:
            InputError: A transform fails, or the result has another type, shape or range.
        """
        changed = []
        # Transforms draw from torch's global generator, which training uses in this process.
        with torch.random.fork_rng(devices=[]):
            for image, key in zip(images, keys, strict=True):
                torch.manual_seed(int(key >> np.uint64(1)))
                changed.append(self._changed(image))
        return torch.stack(changed)

    def _changed(self, image: Tensor) -> Tensor:
        changed, wrong = image, ""
        for transform in self.transforms:
            name = type(transform).__name__
            try:
                changed = transform(changed)
            except Exception as error:
                raise _unfit(f"{name} fails ({' '.join(str(error).split())})") from error
            # A later transform may still correct it: convert floats to uint8, or resize a crop.
            problem = _problem(changed, image)
            wrong = problem and (wrong or f"{name} gives {problem}")
        if wrong:
            raise _unfit(wrong)
        return changed


def _problem(changed: object, image: Tensor) -> str:
    """Why a changed image cannot be trained on; empty where it can."""
    if not isinstance(changed, Tensor):
        return f"a {type(changed).__name__}"
    if changed.shape != image.shape:
        return f"shape {tuple(changed.shape)} instead of {tuple(image.shape)}"
    if changed.dtype == torch.uint8:
        return ""
    if not changed.is_floating_point():
        return str(changed.dtype)
    low, high = changed.aminmax()
    # Interpolation overshoots a little.
    return "" if low >= -0.01 and high <= 1.01 else f"values from {low:.2f} to {high:.2f}"


def _unfit(reason: str) -> InputError:
    return InputError(
        f"augmentation: {reason}; transforms take uint8 images and give uint8 ones (or floats in 0…1) of the "
        "same shape. Leave out normalization and resizing: the data's mean, std and image_size do these"
    )


def make_augmentation(wanted: Preset | list[nn.Module]) -> Augmentation | None:
    """A preset by name, or a list of torchvision transforms on uint8 images.

    Raises:
        InputError: No preset of that name.
    """
    if not isinstance(wanted, str):
        return TransformAugmentation(wanted) if wanted else None
    if wanted not in PRESETS:
        raise InputError(f"augmentation {wanted!r} is none of {', '.join(get_args(Preset))}")
    return PRESETS[wanted]
