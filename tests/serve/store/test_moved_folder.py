"""A store whose folder is deleted, moved or left by the process while it is open."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from serve.store.collection import FaissStore
from serve.store.types import Item, StoreDamaged, StoreError


@pytest.mark.parametrize("moved", [True, False])
def test_no_write_is_lost_with_the_folder(tmp_path: Path, items: list[Item], moved: bool) -> None:
    store = FaissStore.open(tmp_path / "store", dim=16)
    store.upsert(items)
    if moved:
        (tmp_path / "store").rename(tmp_path / "elsewhere")
    else:
        shutil.rmtree(tmp_path / "store")
    with pytest.raises(StoreDamaged, match=r"moved, deleted or replaced .* open the store again"):
        store.upsert([Item("late", items[0].vector)])
    with pytest.raises((StoreError, FileNotFoundError)):
        store.flush()
    store.close()
    assert not (tmp_path / "store").exists()
    if moved:
        with FaissStore.open(tmp_path / "elsewhere") as again:
            assert again.count() == len(items)


def test_the_process_may_change_its_folder(
    tmp_path: Path, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with FaissStore.open("store", dim=16) as store:
        os.chdir(tmp_path)
        store.upsert(items)
        store.flush()
        assert store.search(items[0].vector, 1).hits[0][0].id == items[0].id
    assert not (tmp_path / "store").exists()
    with FaissStore.open("a/store") as store:
        assert store.stats().segments == 1


def test_a_dim_of_numpy(tmp_path: Path) -> None:
    with FaissStore.open(tmp_path / "store", dim=np.int64(4)) as store:
        store.upsert([Item("a", [1, 2, 3, 4])])
    with FaissStore.open(tmp_path / "store") as store:
        assert store.dim == 4


@pytest.mark.parametrize("dim", [1.5, "4"])
def test_a_dim_that_is_no_number_leaves_nothing(tmp_path: Path, dim: object) -> None:
    with pytest.raises(StoreError, match=r"dim is .*; give a whole number"):
        FaissStore.open(tmp_path / "store", dim=dim)
    with FaissStore.open(tmp_path / "store", dim=3) as store:
        assert store.dim == 3


@pytest.mark.parametrize("content", ["{", "[]", '{"aliases": {"a": 1}}', ""])
def test_a_damaged_catalogue_is_named(tmp_path: Path, content: str) -> None:
    FaissStore.open(tmp_path / "store", dim=3).close()
    (tmp_path / "store" / "catalogue.json").write_text(content)
    with pytest.raises(StoreDamaged, match=r"catalogue\.json is damaged .* backup"):
        FaissStore.open(tmp_path / "store")


def test_a_damaged_lock_is_named(tmp_path: Path) -> None:
    FaissStore.open(tmp_path / "store", dim=3).close()
    (tmp_path / "store" / "lock.db").write_bytes(b"x" * 10_000)
    with pytest.raises(StoreDamaged, match=r"lock\.db is no lock of a store; delete this file"):
        FaissStore.open(tmp_path / "store")
