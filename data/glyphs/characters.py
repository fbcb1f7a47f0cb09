"""Choice of the characters that become classes: visible ones in the fonts; look-alikes are merged."""

import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

import matplotlib
import numpy as np
from fontTools.ttLib import TTFont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Faces with Unicode character maps and outlines. The Computer Modern files have code points of their own, so
# only their ASCII letters and digits are used; LastResort, which draws boxes, is left out.
FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic",
    "cmr10", "cmb10", "cmss10", "cmtt10", "cmti10",
)  # fmt: skip

# Letters, digits, punctuation and symbols; no marks, spaces, controls or modifiers.
_CATEGORIES = frozenset({"Lu", "Ll", "Lo", "Nd", "Nl", "No", "Sm", "Sc", "So", "Po", "Pd", "Ps", "Pe"})
# Blocks whose characters differ only by the number of dots or strokes, and mathematical alphabets.
_SKIPPED = (
    (0x2500, 0x259F),
    (0x2800, 0x28FF),
    (0x4DC0, 0x4DFF),
    (0x1D300, 0x1D356),
    (0x1D400, 0x1D7FF),
    (0x1F030, 0x1F0FF),
    (0xFFFC, 0xFFFD),
)

# Bitmaps of the same outline in two scripts are almost equal. Distinct but confusable characters (c and e, П
# and П with a hook) lie between the two thresholds, and one of them is left out.
SAME, CONFUSABLE = 0.93, 0.78
_SIDE = 24


def font_file(face: str) -> Path:
    """Path of a font face that matplotlib ships."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"


@lru_cache(maxsize=len(FACES))
def load_font(face: str, size: int) -> ImageFont.FreeTypeFont:
    """A face at a size in pixels."""
    # The basic layout gives the same glyph whether or not Pillow has the text shaping library.
    return ImageFont.truetype(font_file(face), size, layout_engine=ImageFont.Layout.BASIC)


def faces_of_characters() -> dict[str, tuple[str, ...]]:
    """Every usable character with the faces that have it, at least two."""
    found: dict[str, list[str]] = {}
    for face in FACES:
        with TTFont(font_file(face), lazy=True) as font:
            mapped = font.getBestCmap()
        for code in mapped:
            if _usable(code, plain_only=face.startswith("cm")):
                found.setdefault(chr(code), []).append(face)
    return {char: tuple(found[char]) for char in sorted(found) if len(found[char]) >= 2}


def _usable(code: int, *, plain_only: bool) -> bool:
    char = chr(code)
    if plain_only:
        return char.isascii() and char.isalnum()
    return (
        unicodedata.category(char) in _CATEGORIES
        and not unicodedata.decomposition(char)  # é and e: accents are lost in the noise
        and not any(first <= code <= last for first, last in _SKIPPED)
    )


def glyph_bitmap(char: str, face: str, size: int = 64, stroke: float = 0.0) -> Image.Image | None:
    """The inked part of a character in grey, or None where the face draws nothing.

    ``size`` of the font and ``stroke``, the extra width of strokes, are in pixels.
    """
    font = load_font(face, size)
    left, top, right, bottom = font.getbbox(char, stroke_width=stroke)
    if right - left < 1 or bottom - top < 1:
        return None
    image = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(image).text((1 - left, 1 - top), char, fill=255, font=font, stroke_width=stroke)
    box = image.getbbox()
    return image.crop(box) if box else None


def _shapes(char: str, face: str) -> tuple[NDArray[np.float32], NDArray[np.float32], float] | None:
    """A glyph stretched to a square, the glyph as it is (both unit vectors), and its log aspect ratio."""
    image = glyph_bitmap(char, face)
    if image is None:
        return None
    aspect = float(np.log(image.width / image.height))
    kept = Image.new("L", (_SIDE, _SIDE))
    scale = _SIDE / max(image.size)
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    kept.paste(small, ((_SIDE - small.width) // 2, (_SIDE - small.height) // 2))
    return _unit(image.resize((_SIDE, _SIDE))), _unit(kept), aspect


def _unit(image: Image.Image) -> NDArray[np.float32]:
    pixels = np.asarray(image, dtype=np.float32).ravel()
    norm = np.linalg.norm(pixels)
    return np.asarray(pixels / norm if norm else pixels, dtype=np.float32)


def likeness(chars: Sequence[str], faces: Mapping[str, Sequence[str]]) -> NDArray[np.float32]:
    """Similarity of the looks of characters at equal size, (n, n) in 0…1: the mean over faces that have both.

    Aspect ratios are ignored where they are within the drawing's random stretch.
    """
    total = np.zeros((len(chars), len(chars)), np.float32)
    shared = np.zeros_like(total)
    for face in FACES:
        shapes = {
            i: s for i, c in enumerate(chars) if face in faces[c] and (s := _shapes(c, face)) is not None
        }
        if not shapes:
            continue
        at = np.fromiter(shapes, dtype=np.int64)
        squashed, kept = (np.stack([s[k] for s in shapes.values()]) for k in (0, 1))
        aspect = np.array([s[2] for s in shapes.values()])
        near = np.abs(aspect[:, None] - aspect[None]) < np.log(1.6)
        alike = np.where(near, squashed @ squashed.T, kept @ kept.T)
        total[np.ix_(at, at)] += alike
        shared[np.ix_(at, at)] += 1
    return np.divide(total, np.maximum(shared, 1), dtype=np.float32)


def character_classes(count: int, seed: int) -> tuple[list[list[str]], dict[str, tuple[str, ...]]]:
    """Distinct classes of characters in random order, each a list of characters of the same outline.

    There are ``count`` classes, or as many as the fonts have. Also returns the faces of every character.
    """
    faces = faces_of_characters()
    rng = np.random.default_rng(seed)
    # Characters with many faces come first; comparison takes quadratic time, so compare only enough of them.
    shuffled = sorted(rng.permutation(list(faces)).tolist(), key=lambda char: -min(len(faces[char]), 6))
    drawn = (char for char in shuffled if any(glyph_bitmap(char, face) for face in faces[char]))
    chars = sorted(islice(drawn, 3 * count + 100))
    alike = likeness(chars, faces)
    merged = _components(alike >= SAME)
    order = rng.permutation(len(merged))
    chosen: list[NDArray[np.int64]] = []
    taken = np.zeros(len(chars), dtype=bool)
    for position in order:
        members = merged[position]
        if len(chosen) < count and not (alike[members][:, taken] >= CONFUSABLE).any():
            chosen.append(members)
            taken[members] = True
    return [[chars[i] for i in members] for members in chosen], faces


def _components(linked: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Connected components of a symmetric relation, each ascending, ordered by their first member."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    _, component = connected_components(csr_array(linked), directed=False)
    return [np.flatnonzero(component == c) for c in dict.fromkeys(component.tolist())]
