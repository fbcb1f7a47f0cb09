"""What callers pass to a bundle, and folders that hold no usable one."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.bundle import Bundle
from models.errors import InputError
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import ImageError, Preprocess


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(0)
    architecture = Architecture(backbone="conv4", backbone_args={"width": 8}, embedding_dim=8)
    return Bundle(EmbeddingNetwork(architecture), architecture, Preprocess(size=28))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_no_images_is_refused(bundle: Bundle, picture: Path, batch_size: int) -> None:
    with pytest.raises(InputError, match="must be at least 1"):
        bundle.embed([picture], batch_size)


def test_one_image_is_not_a_list_of_images(bundle: Bundle, picture: Path) -> None:
    for image in (picture, str(picture), picture.read_bytes(), Image.new("RGB", (8, 8))):
        with pytest.raises(InputError, match="put a single one into a list"):
            bundle.embed(image)


def test_a_stream_refuses_its_arguments_at_the_call(bundle: Bundle, picture: Path) -> None:
    with pytest.raises(InputError, match="at least 1"):
        bundle.embed_each([picture], 0)
    with pytest.raises(InputError, match="put a single one into a list"):
        bundle.embed_each(picture)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3), np.uint8), torch.zeros(3, 8, 8), io.BytesIO(b"x"), 5, None]
)
def test_what_is_no_image_is_named(bundle: Bundle, image: Any) -> None:
    with pytest.raises(ImageError, match="is no image; give encoded bytes, a path or a Pillow image"):
        bundle.embed([image])


def test_a_path_with_nul_is_an_unusable_image(bundle: Bundle) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        bundle.embed(["a\0b"])


def test_pillow_images_that_are_not_read_yet(bundle: Bundle, picture: Path) -> None:
    expected = bundle.embed([picture])
    for _ in range(5):
        lazy = Image.open(picture)
        np.testing.assert_array_equal(bundle.embed([lazy] * 8), np.repeat(expected, 8, axis=0))
    closed = Image.open(picture)
    closed.close()
    truncated = Image.open(io.BytesIO(picture.read_bytes()[:5000]))
    for broken in (closed, truncated):
        with pytest.raises(ImageError, match="broken, truncated or closed"):
            bundle.embed([broken])


def test_pixels_are_bytes(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"pixels are uint8, not torch.float32; use embed_tensor"):
        bundle.embed_pixels(torch.rand(1, 3, 28, 28))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"info": None}, "update Kindred if a newer version made the bundle, else export it again"),
        ({"thresholds": {"0.1": "x"}}, "could not convert"),
        ({"exports": [1]}, "export it again"),
        ({"architecture": "x"}, "export it again"),
        ({"architecture": {"later": 1}}, r"bundle\.json: architecture: unknown key 'later'.* update Kindred"),
        ({"preprocess": {"later": 1}}, r"bundle\.json: preprocess settings: .*'later'.* update Kindred"),
        ({"preprocess": {"mean": "x"}}, "update Kindred"),
        ({"format": 2}, "this program reads 1; update Kindred"),
    ],
)
def test_a_description_of_another_version(
    bundle: Bundle, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = bundle.save(tmp_path / "bundle")
    description = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(description | changes))
    with pytest.raises(InputError, match=message):
        Bundle.load(folder, "cpu")


def test_a_description_nested_without_end(bundle: Bundle, tmp_path: Path) -> None:
    folder = bundle.save(tmp_path / "bundle")
    (folder / "bundle.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="cannot be read"):
        Bundle.load(folder, "cpu")


def test_saving_through_a_link_and_onto_a_file(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    bundle.save(tmp_path / "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
    assert (tmp_path / "link").is_symlink()
    assert Bundle.load(tmp_path / "real", "cpu").fingerprint == bundle.fingerprint
    (tmp_path / "file").write_text("notes")
    with pytest.raises(InputError, match="exists and is no bundle; choose another folder"):
        bundle.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "notes"
