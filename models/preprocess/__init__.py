"""Preprocessing for inference: decoding, resizing and normalizing images.

The settings are stored in the bundle, so that evaluation and the server see exactly what training saw.
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
