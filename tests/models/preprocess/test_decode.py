import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.preprocess import DecodeLimits, EncodedImage, ImageError, decode_image, read_limited

LIMITS = DecodeLimits()


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 6 % 256, y * 8 % 256, (x + y) % 256], -1).astype(np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_every_format_decodes(kind: str) -> None:
    image = decode_image(encoded(gradient(), kind), "RGB", LIMITS)
    assert image.size == (40, 30)
    assert image.mode == "RGB"


def test_transparency_lies_on_white() -> None:
    assert decode_image(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0))), "L", LIMITS).getpixel((0, 0)) == 255


def test_palette_with_transparency_lies_on_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0] * 256)
    assert decode_image(encoded(image, transparency=0), "RGB", LIMITS).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_rather_than_clipped() -> None:
    image = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    assert np.asarray(decode_image(encoded(image), "L", LIMITS)).tolist() == [[0, 127, 255]]


def test_one_bit_and_cmyk_decode() -> None:
    assert decode_image(encoded(Image.new("1", (3, 3), 1)), "L", LIMITS).getpixel((1, 1)) == 255
    assert decode_image(encoded(Image.new("CMYK", (3, 3)), "JPEG"), "RGB", LIMITS).getpixel((1, 1)) == (
        255,
        255,
        255,
    )


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(gradient(), "JPEG", exif=exif), "RGB", LIMITS).size == (30, 40)


def test_animation_gives_its_first_frame() -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    content = encoded(red, "GIF", save_all=True, append_images=[blue])
    assert decode_image(content, "RGB", LIMITS).getpixel((0, 0)) == (255, 0, 0)


def test_draft_decodes_large_photographs_smaller_but_never_below_the_target() -> None:
    image = decode_image(encoded(gradient(800, 640), "JPEG"), "RGB", LIMITS, at_least=64)
    assert 64 <= min(image.size) < 640


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_truncated_image_is_refused(kind: str) -> None:
    content = encoded(gradient(200, 200), kind)
    with pytest.raises(ImageError, match=r"truncated|not an image"):
        decode_image(content[: len(content) // 2], "RGB", LIMITS)


def test_text_is_refused() -> None:
    with pytest.raises(ImageError, match="not an image"):
        decode_image(b"hello, world" * 10, "RGB", LIMITS)


def test_empty_is_refused() -> None:
    with pytest.raises(ImageError, match="empty"):
        decode_image(b"", "RGB", LIMITS)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises width × height pixels and which holds none of them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8001, 10_000, 60_000])
def test_pixel_limit_is_read_from_the_header(side: int) -> None:
    with pytest.raises(ImageError, match="limit of 64000000"):
        decode_image(bomb(side, side), "RGB", LIMITS)


def test_byte_limit() -> None:
    with pytest.raises(ImageError, match="over the limit of 10"):
        decode_image(encoded(gradient()), "RGB", DecodeLimits(max_bytes=10))


def test_file_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png: cannot be read"):
        decode_image(tmp_path / "none.png", "RGB", LIMITS)
    large = tmp_path / "large.png"
    large.write_bytes(b"x" * 100)
    with pytest.raises(ImageError, match=r"large\.png: 100 bytes are over"):
        read_limited(large, DecodeLimits(max_bytes=99))


@given(
    st.binary(max_size=200),
    st.integers(0, 400),
    st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]),
)
def test_corrupted_bytes_decode_or_raise_image_error(noise: bytes, position: int, kind: str) -> None:
    content = bytearray(encoded(gradient(), kind))
    content[position : position + len(noise)] = noise
    message = ""
    try:
        assert decode_image(bytes(content), "RGB", DecodeLimits(max_pixels=10**6)).mode == "RGB"
    except ImageError as error:
        message = str(error)
    assert "\n" not in message


@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    form=st.sampled_from([("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("GIF", "P")]),
    orientation=st.integers(1, 8),
    wanted=st.lists(
        st.tuples(st.sampled_from(["RGB", "L"]), st.none() | st.integers(1, 100)), min_size=2, max_size=6
    ),
)
def test_an_image_for_several_is_what_each_would_decode(
    size: tuple[int, int], form: tuple[str, str], orientation: int, wanted: list
) -> None:
    kind, mode = form
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} if kind == "JPEG" else {}
    content = encoded(gradient(*size).convert(mode), kind, **options)
    shared = EncodedImage(content)
    for mode, at_least in wanted:
        found = decode_image(shared, mode, LIMITS, at_least=at_least)
        alone = decode_image(content, mode, LIMITS, at_least=at_least)
        assert (found.mode, found.size) == (alone.mode, alone.size)
        assert found.tobytes() == alone.tobytes()
        found.paste(0, (0, 0, *found.size))  # what one does with it, no other sees
    assert len(shared.decoded) <= len({*wanted})


def test_a_broken_image_for_several_is_refused_each_time() -> None:
    shared = EncodedImage(encoded(gradient(), "JPEG")[:400])
    for _ in range(2):
        with pytest.raises(ImageError, match="broken or truncated"):
            decode_image(shared, "RGB", LIMITS)
