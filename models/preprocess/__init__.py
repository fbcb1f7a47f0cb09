"""From bytes to the network's input: the one place where inference decodes, resizes and normalizes images.

The settings travel inside the bundle, so evaluation and the server see exactly what training saw.
"""

from models.preprocess.decode import (
    FORMATS,
    WHITE,
    ColorMode,
    DecodeLimits,
    EncodedImage,
    ImageError,
    decode_image,
    read_limited,
)
from models.preprocess.preprocess import Interpolation, Preprocess, ResizeMode

__all__ = [
    "FORMATS",
    "WHITE",
    "ColorMode",
    "DecodeLimits",
    "EncodedImage",
    "ImageError",
    "Interpolation",
    "Preprocess",
    "ResizeMode",
    "decode_image",
    "read_limited",
]
