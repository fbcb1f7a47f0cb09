import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data.pixel_cache import PixelCache, open_cache
from data.sources import FolderSource
from models.preprocess import Preprocess

SHAPE = (3, 4, 4)


def image(value: int) -> NDArray[np.uint8]:
    return np.full(SHAPE, value, dtype=np.uint8)


def test_what_is_put_is_got(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path / "c.u8", 5, SHAPE, 10_000)
    assert cache.get(2) is None
    cache.put(2, image(7))
    cache.put(3, image(0))
    got = cache.get(2)
    assert got is not None
    assert np.array_equal(got, image(7))
    assert cache.get(3) is not None, "black is not absent"
    assert cache.filled == 2


def test_the_bound_holds(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path / "c.u8", 100, SHAPE, 3 * 49 + 10)
    for item in range(100):
        cache.put(item, image(item))
    assert cache.filled == cache.slots == 3
    assert cache.get(2) is not None
    assert cache.get(3) is None
    assert (tmp_path / "c.u8").stat().st_size <= 3 * 49 + 10
    assert PixelCache(tmp_path / "none.u8", 100, SHAPE, 0).get(0) is None


def test_workers_share_it(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path / "c.u8", 5, SHAPE, 10_000)
    other = pickle.loads(pickle.dumps(cache))
    other.put(1, image(9))
    got = cache.get(1)
    assert got is not None
    assert got[0, 0, 0] == 9


@pytest.fixture
def images(write_folder: Callable[..., Path]) -> tuple[Any, ...]:
    """A table, its rows and a preprocessing."""
    return FolderSource(write_folder({"a": 3, "b": 2})).table(), np.arange(5), Preprocess(4)


def test_memory_goes_away_and_disk_stays(cache_folder: Path, images: tuple[Any, ...]) -> None:
    memory = open_cache("memory", *images, 10_000)
    assert memory is not None
    path = memory.path
    assert path.is_file()
    del memory
    gc.collect()
    assert not path.exists()
    disk = open_cache("disk", *images, 10_000)
    assert disk is not None
    disk.put(4, image(3))
    again = open_cache("disk", *images, 10_000)
    assert again is not None
    assert again.filled == 1
    assert again.path.is_relative_to(cache_folder)
    assert open_cache("none", *images, 10_000) is None


def test_memory_without_room_in_the_memory_file_system(
    monkeypatch: pytest.MonkeyPatch, images: tuple[Any, ...]
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    cache = open_cache("memory", *images, 10_000)
    assert cache is not None
    assert not cache.path.is_relative_to("/dev/shm")
