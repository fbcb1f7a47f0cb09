import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.errors import InputError
from models.preprocess import Preprocess


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 40),
    st.sampled_from(["RGB", "L"]),
    st.sampled_from(["crop", "pad", "squash", "content"]),
)
def test_any_rectangle_becomes_the_square(width: int, height: int, size: int, mode: str, fit: str) -> None:
    tensor = Preprocess(size=size, mode=mode, fit=fit)(Image.new("RGB", (width, height), "red"))
    assert tensor.shape == (len(mode), size, size)
    assert tensor.dtype == torch.float32


def test_extreme_aspect_ratio() -> None:
    for fit in ("crop", "pad", "squash", "content"):
        assert Preprocess(size=8, fit=fit)(Image.new("RGB", (1, 5000))).shape == (3, 8, 8)


def test_pad_keeps_all_of_the_image_and_crop_its_centre() -> None:
    image = Image.new("L", (30, 10), 0)
    image.putpixel((0, 5), 0)
    assert Preprocess(size=10, mode="L", fit="pad").open(image).getpixel((5, 0)) == 255
    assert np.asarray(Preprocess(size=10, mode="L", fit="crop").open(image)).max() == 0


def test_normalize_agrees_for_bytes_and_floats() -> None:
    settings = Preprocess(size=4)
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean = torch.tensor(settings.mean)[:, None, None]
    std = torch.tensor(settings.std)[:, None, None]
    expected = (pixels.double() / 255 - mean) / std
    torch.testing.assert_close(settings.normalize(pixels).double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        settings.normalize(pixels.float() / 255).double(), expected, atol=1e-5, rtol=1e-5
    )


def test_round_trip_through_json() -> None:
    settings = Preprocess(size=28, mode="L", fit="pad", mean=(0.1,), std=(0.3,))
    assert Preprocess.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "CMYK"}, "neither RGB nor L"),
        ({"fit": "stretch"}, "none of crop"),
        ({"size": 0}, "outside"),
        ({"mean": (0.5,)}, "3 values"),
        ({"std": (0.0, 1.0, 1.0)}, "positive"),
        ({"sise": 3}, "sise"),
    ],
)
def test_unusable_settings(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocess.from_dict(arguments)
