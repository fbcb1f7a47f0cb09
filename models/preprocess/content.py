"""Cropping to the content of an image, for characters and products on a plain background."""

import math

import numpy as np
from PIL import Image

from models.preprocess.decode import DecodeLimits, ImageError

# Longest side, in pixels, at which content is searched for; larger images are shrunk to less than twice that.
_SEARCHED = 1024


def content_box(image: Image.Image, height: int = 1, width: int = 1) -> Image.Image:
    """Cut out a box around an image's content; outside the image it is filled with the background colour.

    The background is the median colour of the outermost pixels; content differs from it, in any channel, by
    more than half of the largest difference, on light and dark backgrounds alike. The box is centred on the
    content, so that its position does not matter. The side of a square box is the geometric mean of the
    content's and the image's longest sides, so that differences in size shrink to their square root: most
    come from the writer or the camera, but some distinguish classes. An image of one colour is kept whole.

    Args:
        image: of mode "L" or "RGB".
        height: of the box; only its ratio to the width matters.
        width: likewise.

    Returns:
        The crop, in the mode of the image, not resized.

    Raises:
        ImageError: the image is so elongated that the box would exceed the limits on pixels.
    """
    shrunk = max(1, max(image.size) // _SEARCHED)
    pixels = np.asarray(image.reduce(shrunk))
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    outermost = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(outermost, axis=0).astype(np.uint8)
    darker, lighter = np.minimum(pixels, background), np.maximum(pixels, background)
    difference = (lighter - darker).max(axis=2)
    content = difference > difference.max() / 2
    rows, columns = np.flatnonzero(content.any(axis=1)), np.flatnonzero(content.any(axis=0))
    if rows.size:
        top, bottom = shrunk * rows[0], shrunk * (rows[-1] + 1)
        left, right = shrunk * columns[0], shrunk * (columns[-1] + 1)
    else:
        top, bottom, left, right = 0, image.height, 0, image.width
    # Lengths in units of the box's sides, so that the box holds the content whatever its shape.
    longest = max(height, width)
    tall, wide = height / longest, width / longest
    content_side = max((bottom - top) / tall, (right - left) / wide)
    side = math.sqrt(content_side * max(image.height / tall, image.width / wide))
    box_width, box_height = math.ceil(side * wide), math.ceil(side * tall)
    if box_width * box_height > DecodeLimits.max_pixels:
        raise ImageError(
            f"image: too elongated for content_crop ({image.width}×{image.height} pixels); crop the image"
        )
    fill = tuple(int(value) for value in background)
    canvas = Image.new(image.mode, (box_width, box_height), fill if len(fill) > 1 else fill[0])
    canvas.paste(image, (-round((left + right - box_width) / 2), -round((top + bottom - box_height) / 2)))
    return canvas
