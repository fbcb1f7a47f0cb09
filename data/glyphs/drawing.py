"""Drawing a noisy picture of a character, like a scan or a photograph.

As a process of its own, it reads an order as JSON, draws a share of the classes and prints a line per class.
"""

import io
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.ndimage import map_coordinates

from data.glyphs.characters import glyph_bitmap

_BITMAP = 64
# A fixed date, so that the same pictures make the same archive.
_DATE = (2020, 1, 1, 0, 0, 0)

# Luma of red, green and blue (ITU-R BT.601).
_LIGHTNESS = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def draw_glyph(variants: Sequence[tuple[str, str]], rng: np.random.Generator, side: int) -> Image.Image:
    """Draw one of a class's (character, face) pairs with random geometry, weight, light and noise.

    The picture is RGB, ``side`` pixels high and wide.
    """
    char, face = variants[int(rng.integers(len(variants)))]
    ink = _warp(_stroked(char, face, rng), rng, side)[..., None]
    paper, pen = _colors(rng)
    ground = paper + _texture(rng, side) * rng.uniform(0, 0.2)
    if rng.random() < 0.3:
        ground = _ruled(ground, rng, side)
    picture = ground + ink * (pen + _texture(rng, side) * rng.uniform(0, 0.1) - ground)
    picture += rng.normal(0, rng.uniform(0.01, 0.07), picture.shape)
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8)))


def _stroked(char: str, face: str, rng: np.random.Generator) -> Image.Image:
    """A bitmap with a random stroke weight; it is not thinned where too little would remain."""
    weight = rng.uniform(-0.8, 1.5)
    image = glyph_bitmap(char, face, _BITMAP, stroke=max(0.0, weight))
    if image is None:
        raise ValueError(f"{face} draws nothing for {char!r}")
    if weight < -0.3:
        thin = image.filter(ImageFilter.MinFilter(3))
        if np.asarray(thin).sum() > 0.5 * np.asarray(image).sum():
            return thin
    return image


def _warp(image: Image.Image, rng: np.random.Generator, side: int) -> NDArray[np.float32]:
    """The bitmap after a random affine and elastic transform, ink in 0…1, float32 (side, side)."""
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.8)), dtype=np.float32) / 255
    height, width = pixels.shape
    zoom = rng.uniform(0.6, 0.85) * side / max(width, height)
    stretch = np.exp(rng.uniform(-0.18, 0.18))
    angle, shear = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(-0.2, 0.2)
    cos, sin = np.cos(angle), np.sin(angle)
    forward = (
        np.array([[cos, -sin], [sin, cos]]) @ [[1, shear], [0, 1]] @ np.diag([zoom * stretch, zoom / stretch])
    )
    backward = np.linalg.inv(forward)
    y, x = np.mgrid[:side, :side].astype(np.float32) - (side - 1) / 2
    x, y = x - rng.uniform(-0.08, 0.08) * side, y - rng.uniform(-0.08, 0.08) * side
    bend = rng.uniform(0, 0.05) * side
    x, y = x + bend * _smooth(rng, 5, side), y + bend * _smooth(rng, 5, side)
    columns = backward[0, 0] * x + backward[0, 1] * y + (width - 1) / 2
    rows = backward[1, 0] * x + backward[1, 1] * y + (height - 1) / 2
    return np.asarray(map_coordinates(pixels, [rows, columns], order=1), dtype=np.float32)


def _smooth(rng: np.random.Generator, knots: int, side: int) -> NDArray[np.float32]:
    """A smooth random field of values in about −1…1, float32 (side, side)."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (knots, knots)).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def _texture(rng: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Uneven light and stains in slightly varying colour, float32 (side, side, 3)."""
    knots = int(rng.integers(2, 12))
    tint = rng.uniform(0.6, 1.0, 3).astype(np.float32)
    return _smooth(rng, knots, side)[..., None] * tint


def _colors(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Light paper and a pen dark enough to read, each float32 (3,), RGB in 0…1."""
    paper = rng.uniform(0.45, 1.0, 3).astype(np.float32)
    lightness = float(paper @ _LIGHTNESS)
    while True:
        pen = rng.uniform(0.0, 0.6, 3).astype(np.float32)
        if lightness - float(pen @ _LIGHTNESS) > 0.3:
            return paper, pen


def _ruled(ground: NDArray[np.float32], rng: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Parallel lines under the character, as on ruled paper."""
    angle, gap = rng.uniform(0, np.pi), rng.uniform(6, 16)
    y, x = np.mgrid[:side, :side]
    lines = (x * np.cos(angle) + y * np.sin(angle) + rng.uniform(0, gap)) % gap < 1
    return np.where(lines[..., None], ground + rng.uniform(-0.25, 0.25), ground)


def _draw(part: Path) -> None:
    order = json.load(sys.stdin)
    with zipfile.ZipFile(part, "w") as archive:
        for job in order["jobs"]:
            for number in range(order["count"]):
                rng = np.random.default_rng((order["seed"], job["code"], number))
                content = io.BytesIO()
                draw_glyph(job["variants"], rng, order["size"]).save(content, "PNG", compress_level=1)
                info = zipfile.ZipInfo(f"{job['folder']}/{number:03d}.png", _DATE)
                archive.writestr(info, content.getvalue())
            sys.stdout.write(".\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _draw(Path(sys.argv[1]))
