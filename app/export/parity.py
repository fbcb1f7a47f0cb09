"""The difference between an export's vectors and the original's."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from app.export.comparison_images import Pixels
from models.bundle import Bundle
from models.errors import InputError
from models.inference import TOLERANCE, versions


def measured_parity(original: Bundle, pixels: Pixels, export: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Compare an export with the original network, in a batch of 1 image, then in batches of 7.

    Args:
        original: the bundle.
        pixels: the images.
        export: uint8 (B, C, H, W) → (B, dim).

    Returns:
        Plain JSON: `max_difference` over all coordinates, `least_similarity` (cosine) over all images, the
        number and source of the images, and versions.
    """
    batches = list(_batches(pixels.values))
    expected = torch.cat([original.embed_pixels(batch).cpu() for batch in batches])
    found = torch.cat([export(batch).float().cpu() for batch in batches])
    difference = (found - expected).abs().nan_to_num(torch.inf)
    return {
        "max_difference": float(difference.max()),
        "least_similarity": float((found * expected).sum(1).min()),
        "images": len(expected),
        "source": pixels.source,
        "versions": versions(),
    }


def require_parity(name: str, parity: dict[str, Any]) -> None:
    """Refuse an export that differs from the original.

    Raises:
        InputError: a coordinate differs by more than the tolerance.
    """
    if not parity["max_difference"] <= TOLERANCE:
        raise InputError(
            f"{name}: differs from the original by {parity['max_difference']:.1e} in a coordinate, over "
            f"{TOLERANCE:g}; it was not written"
        )


def _batches(values: Tensor) -> Iterator[Tensor]:
    yield from (batch for batch in (values[:1], *torch.split(values[1:], 7)) if len(batch))
