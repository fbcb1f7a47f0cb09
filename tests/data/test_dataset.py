from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from data.counter_rng import derive
from data.dataset import BatchSpec, ImageDataset, LoadedBatch
from data.pixel_cache import PixelCache
from data.sources import FolderSource
from data.table import ImageTable
from models.errors import InputError
from models.preprocess import ImageError, Preprocess


@pytest.fixture
def table(write_folder: Callable[..., Path]) -> ImageTable:
    return FolderSource(write_folder({"a": 3, "b": 3})).table()


def load(dataset: ImageDataset, *items: int) -> LoadedBatch:
    drawn = np.array(items, dtype=np.int64)
    loaded = dataset.__getitems__(BatchSpec(drawn, derive(drawn)))
    assert isinstance(loaded, LoadedBatch)
    return loaded


def dataset(table: ImageTable, **options: object) -> ImageDataset:
    rows = np.arange(len(table))
    return ImageDataset(table, rows, table.labels, Preprocess(8), **options)


def test_torchs_loader_pins_a_batch(table: ImageTable, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    loaded = load(dataset(table), 0)
    assert isinstance(pin_memory(loaded), LoadedBatch)
    assert {id(tensor) for tensor in pinned} == {id(tensor) for tensor in loaded.batch.values()}


def test_batches_are_normalized_images(table: ImageTable) -> None:
    data = ImageDataset(table, np.array([1, 4]), np.array([0, 1]), Preprocess(8))
    batch = load(data, 1, 0).batch
    assert batch["image"].shape == (2, 3, 8, 8)
    assert batch["image"].dtype == torch.float32
    assert batch["label"].tolist() == [1, 0]
    assert batch["index"].tolist() == [4, 1]
    assert torch.equal(batch["image"][0], Preprocess(8)(table.read(4)))
    assert torch.equal(data[1]["image"], batch["image"][0])
    assert len(data) == 2
    assert [item["index"] for item in data.__getitems__([0, 1])] == [1, 4]


def test_rotations_are_classes_of_their_own(table: ImageTable) -> None:
    data = dataset(table, rotations=True)
    assert len(data) == 24
    assert data.labels.tolist() == [label + 2 * turn for turn in range(4) for label in (0, 0, 0, 1, 1, 1)]
    batch = load(data, 4, 10, 16, 22).batch
    assert batch["index"].tolist() == [4] * 4
    for turn in range(4):
        assert torch.equal(batch["image"][turn], torch.rot90(batch["image"][0], turn, (1, 2)))


def test_cached_pixels_are_the_same(table: ImageTable, tmp_path: Path) -> None:
    cache = PixelCache(tmp_path / "c.u8", 6, (3, 8, 8), 4 * 193)
    data = dataset(table, cache=cache)
    first = load(data, *range(6)).batch["image"]
    assert cache.filled == 4
    (table.roots[0] / "a" / "000.png").unlink()
    assert torch.equal(load(data, *range(6)).batch["image"], first)


@pytest.fixture
def damaged(table: ImageTable) -> ImageTable:
    (table.roots[0] / "a" / "001.png").write_text("no image")
    return table


def test_training_replaces_corrupt_images_by_their_class(damaged: ImageTable) -> None:
    loaded = load(dataset(damaged, replace_corrupt=True), 1, 4)
    assert loaded.batch["label"].tolist() == [0, 1]
    assert loaded.batch["index"].tolist() == [2, 4]
    assert list(loaded.corrupt) == ["a/001.png"]
    assert "not an image of a known format" in loaded.corrupt["a/001.png"]


def test_evaluation_leaves_corrupt_images_out(damaged: ImageTable) -> None:
    loaded = load(dataset(damaged), 0, 1, 4)
    assert loaded.batch["index"].tolist() == [0, 4]
    assert list(loaded.corrupt) == ["a/001.png"]
    assert load(dataset(damaged), 1).batch["image"].shape == (0, 3, 8, 8)
    with pytest.raises(ImageError, match=r"a/001\.png"):
        dataset(damaged)[1]


def test_a_class_without_any_readable_image_is_named(damaged: ImageTable) -> None:
    for number in (0, 2):
        (damaged.roots[0] / "a" / f"00{number}.png").write_text("no image")
    with pytest.raises(InputError, match="class 'a': none of its images can be read"):
        load(dataset(damaged, replace_corrupt=True), 0)


def test_augmentation_sees_uint8_and_its_own_keys(table: ImageTable) -> None:
    seen = {}

    def augment(images: torch.Tensor, keys: np.ndarray) -> torch.Tensor:
        seen["dtype"], seen["keys"] = images.dtype, keys
        return 255 - images

    batch = load(dataset(table, augment=augment), 2, 5).batch
    assert seen["dtype"] == torch.uint8
    assert np.array_equal(seen["keys"], derive(np.array([2, 5])))
    plain = load(dataset(table), 2, 5).batch["image"]
    assert not torch.equal(batch["image"], plain)
