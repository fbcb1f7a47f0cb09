import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.preprocess import Preprocess
from models.preprocess.content import content_box


def drawn(left: int, top: int, side: int, paper: int = 255, ink: int = 0, page: int = 100) -> Image.Image:
    """A square ring of ink on a page."""
    pixels = np.full((page, page), paper, np.uint8)
    pixels[top : top + side, left : left + side] = ink
    pixels[top + side // 4 : top + side // 2, left + side // 4 : left + side // 2] = paper
    return Image.fromarray(pixels)


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([16, 36, 64]))
def test_position_does_not_matter_and_size_by_its_root(left: int, top: int, side: int) -> None:
    ink = (
        np.asarray(Preprocess(size=100, mode="L", resize_mode="content_crop").open(drawn(left, top, side)))
        < 128
    )
    for axis in (0, 1):
        places = np.flatnonzero(ink.any(axis))
        assert abs(len(places) - 10 * side**0.5) <= 4
        assert abs(places.mean() - 49.5) <= 4


def test_white_on_black_is_found_as_black_on_white_is() -> None:
    black = np.asarray(content_box(drawn(5, 40, 20)))
    white = np.asarray(content_box(drawn(5, 40, 20, paper=0, ink=255)))
    np.testing.assert_array_equal(255 - black, white)
    assert black.shape == (45, 45)


def test_colour_that_grey_does_not_show() -> None:
    image = Image.new("RGB", (60, 40), (200, 0, 0))
    image.paste((0, 102, 0), (30, 10, 40, 20))
    assert content_box(image).size == (25, 25)


def test_a_large_scan_is_searched_at_a_smaller_scale() -> None:
    scan = drawn(1200, 300, 900, page=3000)
    assert abs(content_box(scan).width - 1643) <= 5
    small, large = (
        np.asarray(Preprocess(size=32, mode="L", resize_mode="content_crop").open(image), float)
        for image in (drawn(120, 30, 90, page=300), scan)
    )
    assert np.abs(small - large).mean() < 8


def test_a_page_without_content_and_a_speck() -> None:
    assert content_box(Image.new("L", (30, 10), 7)).size == (30, 30)
    speck = Image.new("L", (100, 100), 255)
    speck.putpixel((50, 50), 0)
    assert content_box(speck).size == (10, 10)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_what_sticks_out_is_filled_with_the_background(mode: str) -> None:
    image = Image.new(mode, (40, 40), "white")
    image.paste(0 if mode == "L" else (0, 0, 0), (20, 36, 40, 40))
    square = np.asarray(content_box(image))
    assert square.shape[:2] == (29, 29)
    assert square[:10].min() == 255
    assert square[-10:].min() == 255


def test_a_box_of_another_shape_holds_the_content_and_keeps_its_proportions() -> None:
    wide = Image.new("L", (100, 100), 255)
    wide.paste(0, (10, 40, 70, 60))
    for height, width in ((1, 2), (2, 1), (48, 32)):
        box = np.asarray(content_box(wide, height, width))
        assert box.shape[0] / box.shape[1] == pytest.approx(height / width, rel=0.05)
        ink = box < 128
        assert (np.count_nonzero(ink.any(0)), np.count_nonzero(ink.any(1))) == (60, 20)
