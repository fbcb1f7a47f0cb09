"""Grey of more than 8 bits: what is white follows from mode and settings, never from an image."""

import io
import json
import logging
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.errors import InputError
from models.preprocess import DecodeLimits, Preprocess, decode_image
from models.preprocess.decode import _warn_of_floats

LIMITS = DecodeLimits()
VALUES = (0, 255, 256, 4095, 65535, 40000)
AS_SIXTEEN_BIT = [0, 0, 0, 15, 255, 155]
AS_TWELVE_BIT = [0, 15, 15, 255, 255, 255]


def tiff(data: bytes, width: int, bits: int, order: str, kind: int) -> bytes:
    """One row of uncompressed grey; ``kind`` is 1 for unsigned, 2 for signed, 3 for floating point."""
    entries = [(256, width), (257, 1), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1)]
    entries += [(279, len(data)), (339, kind)]
    body = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in entries)
    start = struct.pack(order + "I", 8 + len(data))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + start + data + struct.pack(order + "H", len(entries)) + body + b"\0\0\0\0"


def plain_tiff(values: Sequence[float], dtype: str) -> bytes:
    pixels = np.array(values).astype(dtype)
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    return tiff(pixels.tobytes(), len(values), pixels.itemsize * 8, dtype[0], kind)


def packed_tiff(values: Sequence[int]) -> bytes:
    """12 bits a pixel: two pixels in three bytes."""
    pairs = zip(values[::2], values[1::2], strict=True)
    data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    return tiff(data, len(values), 12, "<", 1)


def png(values: Sequence[int]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.array([values], np.uint16)).save(content, "PNG")
    return content.getvalue()


def pgm(values: Sequence[int], most: int) -> bytes:
    return f"P5 {len(values)} 1 {most}\n".encode() + np.array(values, ">u2").tobytes()


def decoded(content: bytes, white_level: int = 65535) -> list[int]:
    return np.asarray(decode_image(content, "L", LIMITS, white_level=white_level))[0].tolist()


SIXTEEN_BIT = {
    "PNG": png(VALUES),
    "PGM": pgm(VALUES, 65535),
    "plain PGM": b"P2 6 1 65535\n" + b" ".join(str(v).encode() for v in VALUES),
    "TIFF, little-endian": plain_tiff(VALUES, "<u2"),
    "TIFF, big-endian": plain_tiff(VALUES, ">u2"),
    "TIFF of 32 bits": plain_tiff(VALUES, "<u4"),
    "TIFF of signed 32 bits, big-endian": plain_tiff(VALUES, ">i4"),
}


@pytest.mark.parametrize("name", SIXTEEN_BIT)
def test_sixteen_bits_are_scaled_by_65535(name: str) -> None:
    assert decoded(SIXTEEN_BIT[name]) == AS_SIXTEEN_BIT


@pytest.mark.parametrize("name", [name for name in SIXTEEN_BIT if "PGM" not in name])
def test_the_white_level_of_a_camera_is_white(name: str) -> None:
    assert decoded(SIXTEEN_BIT[name], 4095) == AS_TWELVE_BIT


def test_a_file_that_states_its_white_is_believed() -> None:
    dim = [0, 15, 2048, 4095]
    for content in (pgm(dim, 4095), packed_tiff(dim)):
        assert decoded(content) == decoded(content, 1000) == [0, 0, 127, 255]


@given(st.lists(st.integers(0, 65535), min_size=2, max_size=20), st.integers(1, 65535))
def test_a_pixel_looks_the_same_whatever_is_beside_it(values: list[int], white_level: int) -> None:
    for encode in (png, lambda v: plain_tiff(v, "<u2"), lambda v: plain_tiff(v, ">i4")):
        together = decoded(encode(values), white_level)
        assert together == [decoded(encode([value]), white_level)[0] for value in values]


def test_two_frames_of_one_camera_keep_their_scale() -> None:
    dark, bright = (decoded(png([200, brightest]))[0] for brightest in (255, 256))
    assert dark == bright == 0


@pytest.mark.parametrize("order", ["<", ">"])
def test_floating_point_is_taken_as_zero_to_one_and_said_once(
    order: str, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_of_floats.cache_clear()
    values = [0, 0.5, 1, 300, -1, float("nan"), 3e38]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert decoded(plain_tiff(values, order + "f4"), 4095) == [0, 127, 255, 255, 0, 0, 255]
    assert len(caplog.records) == 1
    assert "0 (black) to 1 (white)" in caplog.text


def test_out_of_range_is_clipped() -> None:
    assert decoded(plain_tiff([-5, 70_000, 65535], "<i4")) == [0, 255, 255]


def test_preprocess_applies_its_white_level_to_files_and_to_opened_images() -> None:
    settings = Preprocess((1, 6), "L", "stretch", white_level=4095)
    for source in (SIXTEEN_BIT["PNG"], Image.open(io.BytesIO(SIXTEEN_BIT["PNG"]))):
        assert np.asarray(settings.open(source))[0].tolist() == AS_TWELVE_BIT


def test_the_white_level_travels_and_the_usual_one_leaves_fingerprints_alone() -> None:
    assert "white_level" not in Preprocess().to_dict()
    settings = Preprocess(white_level=4095)
    assert Preprocess.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    with pytest.raises(InputError, match="white_level 0 is not positive"):
        Preprocess(white_level=0)
