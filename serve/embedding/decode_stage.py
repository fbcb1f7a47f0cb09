"""First stage (``encode_pre``): encoded bytes to the network's pixels, in a decoding thread."""

import io
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from models.preprocess import Preprocess, decode_image


@dataclass(frozen=True)
class Decoded:
    """An image ready for the network.

    Attributes:
        pixels: uint8 of shape (channels, height, width).
        thumbnail: JPEG bytes, or None when none was asked for.
    """

    pixels: Tensor
    thumbnail: bytes | None


def encode_pre(preprocess: Preprocess, content: bytes, thumbnail: int = 0) -> Decoded:
    """Decode, turn upright and resize one image, under the preprocessing's limits.

    Args:
        preprocess: The bundle's preprocessing.
        content: The encoded image.
        thumbnail: Longest side of the thumbnail to make as well, in pixels; 0 makes none.

    Raises:
        ImageError: The bytes are no image that can be used.
    """
    small = None
    if thumbnail:
        shown = decode_image(
            content, "RGB", preprocess.limits, at_least=thumbnail, white_level=preprocess.white_level
        )
        small = jpeg_thumbnail(shown, thumbnail)
    return Decoded(preprocess.tensor(preprocess.open(content)), small)


def jpeg_thumbnail(image: Image.Image, side: int) -> bytes:
    """A JPEG of ``image`` that fits a square of ``side`` pixels; small images keep their size."""
    copy = image.convert("RGB")
    copy.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    copy.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
