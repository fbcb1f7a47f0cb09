"""Decoding of untrusted images under limits on bytes and pixels."""

import io
import logging
import struct
import warnings
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from models.errors import InputError

ColorMode = Literal["RGB", "L"]
WHITE = 65535  # of 16-bit grey

_log = logging.getLogger(__name__)

# Pillow reads some fifty formats; those that photographs do not need would only add attack surface.
# Some of these are missing from builds of Pillow without their libraries.
Image.init()
FORMATS = tuple(
    name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF") if name in Image.OPEN
)

# Users need no warnings about odd EXIF and TIFF tags. (A filter around each call would not be thread-safe.)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# Exceptions of Pillow's decoders on broken files, besides its own UnidentifiedImageError (an OSError).
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, OverflowError)


class ImageError(InputError):
    """An unusable image: unreadable, not an image, truncated, or over a limit."""


class EncodedImage(bytes):
    """The encoded bytes of an image that several models embed: `decode_image` keeps what it decoded.

    A JPEG is decoded once for each scale and colour mode that is requested.
    """

    def __init__(self, content: bytes) -> None:
        del content
        self.decoded: dict[tuple[str, tuple[int, int]], Image.Image] = {}


@dataclass(frozen=True)
class DecodeLimits:
    """Limits that are checked before decoding.

    Attributes:
        max_bytes: Largest encoded file, in bytes.
        max_pixels: Largest width × height in the header, in pixels.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 64_000_000


def read_limited(path: Path, limits: DecodeLimits) -> bytes:
    """Read a file that is within the limit on bytes.

    Raises:
        ImageError: The file is missing, unreadable or too large.
    """
    try:
        size = path.stat().st_size
        if size > limits.max_bytes:
            raise ImageError(
                f"{path}: {size} bytes are over the limit of {limits.max_bytes}; shrink the image"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: the path holds NUL
        raise ImageError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def upright(image: Image.Image, mode: ColorMode, white_level: int = WHITE) -> Image.Image:
    """Apply the EXIF rotation and convert an image of any Pillow mode to ``mode``.

    Transparency is laid on white. Grey of more than 8 bits is scaled by its white level, never by the largest
    value in the image, so that all images of a camera have the same scale; values above are clipped.

    Args:
        image: Of any mode.
        mode: Of the result.
        white_level: Value of white in integer grey images of more than 8 bits, unless the file states it (the
            maximum in a PGM's header, a TIFF of 12 bits).
    """
    level = 1 if image.mode == "F" else _own_white(image) or white_level
    image = ImageOps.exif_transpose(image)
    if image.mode == mode:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion clips at 255, which turns 16-bit scans white and float images black.
        if image.mode == "F":
            _warn_of_floats()
        grey = np.clip(np.nan_to_num(np.asarray(image, dtype=np.float32)), 0, level) * 255 / level
        return Image.fromarray(grey.astype(np.uint8)).convert(mode)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


def _own_white(image: Image.Image) -> int | None:
    """The value of white that the file of a grey image states, or None."""
    if image.format == "PPM":
        return WHITE  # Pillow has scaled the header's maximum to it
    if isinstance(image, TiffImageFile) and image.tag_v2.get(BITSPERSAMPLE) == (12,):
        return 4095
    return None


@cache  # once a process
def _warn_of_floats() -> None:
    _log.warning("images of floating-point numbers are taken as 0 (black) to 1 (white); the rest is clipped")


def decode_image(
    source: bytes | Path,
    mode: ColorMode,
    limits: DecodeLimits,
    *,
    at_least: int | None = None,
    white_level: int = WHITE,
) -> Image.Image:
    """Decode the first frame of an image, upright and in one colour mode.

    Args:
        source: Encoded bytes, or a file.
        mode: Colour mode of the result.
        limits: Checked before decoding.
        at_least: The short side that the caller will resize to. A JPEG is then decoded at the smallest of its
            scales 1, 1/2, 1/4 and 1/8 that is at least that large (libjpeg's scaled decoding, 2–3 times
            faster on photographs).
        white_level: See :func:`upright`.

    Raises:
        ImageError: The bytes are empty, not an image of a known format, truncated, or over a limit.
    """
    if not isinstance(source, bytes | bytearray | memoryview | Path):
        raise ImageError(
            f"a {type(source).__name__} is no image; give encoded bytes, a path or a Pillow image, "
            "such as Image.fromarray(array)"
        )
    name = str(source) if isinstance(source, Path) else "image"
    content = read_limited(source, limits) if isinstance(source, Path) else source
    if not content:
        raise ImageError(f"{name}: empty; send an encoded image")
    if len(content) > limits.max_bytes:
        raise ImageError(
            f"{name}: {len(content)} bytes are over the limit of {limits.max_bytes}; shrink the image"
        )
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        pixels = image.width * image.height
        if pixels > limits.max_pixels:
            raise ImageError(
                f"{name}: {image.width}×{image.height} pixels are over the limit of {limits.max_pixels}; "
                "shrink it"
            )
        if at_least is not None and image.format == "JPEG":
            image.draft(mode, (at_least, at_least))
        decoded = content.decoded if isinstance(content, EncodedImage) else {}
        form = (image.mode, image.size)
        image = decoded.get(form, image)
        image.load()
        decoded[form] = image
        return upright(image, mode, white_level)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: more pixels than the limit of {limits.max_pixels}; shrink it") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image of a known format ({', '.join(FORMATS)})") from error
    except BROKEN as error:
        raise ImageError(f"{name}: broken or truncated image ({error})") from error
