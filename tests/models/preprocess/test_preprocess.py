import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.errors import InputError
from models.preprocess import ImageError, Preprocess
from models.preprocess.content import content_box


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 40),
    st.sampled_from(["RGB", "L"]),
    st.sampled_from(["crop", "pad", "stretch", "content_crop"]),
)
def test_any_rectangle_becomes_the_square(width: int, height: int, size: int, mode: str, resize: str) -> None:
    tensor = Preprocess(size=size, mode=mode, resize_mode=resize)(Image.new("RGB", (width, height), "red"))
    assert tensor.shape == (len(mode), size, size)
    assert tensor.dtype == torch.float32


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(["RGB", "L"]),
    st.sampled_from(["crop", "pad", "stretch", "content_crop"]),
)
def test_any_image_becomes_the_rectangle(
    width: int, height: int, size: tuple[int, int], mode: str, resize: str
) -> None:
    settings = Preprocess(size=size, mode=mode, resize_mode=resize)
    tensor = settings(Image.new("RGB", (width, height), "red"))
    assert tensor.shape == settings.shape == (len(mode), *size)
    kept = settings.to_dict()
    assert kept["size"] == (size[0] if size[0] == size[1] else list(size))
    assert Preprocess.from_dict(json.loads(json.dumps(kept))) == settings


def test_extreme_aspect_ratio() -> None:
    for resize in ("crop", "pad", "stretch", "content_crop"):
        assert Preprocess(size=8, resize_mode=resize)(Image.new("RGB", (1, 5000))).shape == (3, 8, 8)
        wide = Preprocess(size=(8, 4), resize_mode=resize)
        assert wide(Image.new("RGB", (5000, 1))).shape == (3, 8, 4)


def test_content_of_an_elongated_image_takes_no_gigabytes() -> None:
    with pytest.raises(ImageError, match="too elongated"):
        Preprocess(size=8, resize_mode="content_crop").open(Image.new("L", (60_000, 1)))


def test_pad_keeps_all_of_the_image_and_crop_its_centre() -> None:
    image = Image.new("L", (30, 10), 0)
    image.putpixel((0, 5), 0)
    assert Preprocess(size=10, mode="L", resize_mode="pad").open(image).getpixel((5, 0)) == 255
    assert np.asarray(Preprocess(size=10, mode="L", resize_mode="crop").open(image)).max() == 0


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
    settings = Preprocess(size=28, mode="L", resize_mode="pad", mean=(0.1,), std=(0.3,))
    assert Preprocess.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch", "content_crop"])
@pytest.mark.parametrize("method", ["bilinear", "bicubic", "lanczos"])
def test_interpolation_is_that_of_the_resize(method: str, resize: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    settings = Preprocess(size=24, resize_mode=resize, interpolation=method)
    source = content_box(image) if resize == "content_crop" else image
    expected = source.resize((24, 24), Image.Resampling[method.upper()])
    np.testing.assert_array_equal(np.asarray(settings.open(image)), np.asarray(expected))
    assert Preprocess.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_the_usual_interpolation_leaves_older_descriptions_as_they_were() -> None:
    """Bundles made before there was a choice keep their fingerprints."""
    assert list(Preprocess().to_dict()) == ["size", "mode", "resize_mode", "mean", "std", "limits"]
    assert Preprocess(interpolation="bicubic").to_dict()["interpolation"] == "bicubic"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "CMYK"}, "neither RGB nor L"),
        ({"resize_mode": "zoom"}, "none of crop"),
        ({"size": 0}, "outside"),
        ({"interpolation": "spline"}, "none of bilinear"),
        ({"mean": (0.5,)}, "3 values"),
        ({"std": (0.0, 1.0, 1.0)}, "positive"),
        ({"sise": 3}, "sise"),
    ],
)
def test_unusable_settings(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocess.from_dict(arguments)
