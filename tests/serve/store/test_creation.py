"""A collection is there whole or not at all, and stays there; opened by its alias, or only looked at."""

import contextlib
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serve.store.catalogue import Catalogue
from serve.store.collection import FaissStore
from serve.store.types import Item, ReadOnly, StoreDamaged, StoreError, StoreMissing


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond a few bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_refused_index_leaves_nothing(tmp_path: Path) -> None:
    with Catalogue(tmp_path / "store") as catalogue:
        with pytest.raises(StoreError):
            catalogue.create("a", 8, index="Sponge")
        assert catalogue.collections() == []
        assert catalogue.create("a", 8, "model").count() == 0


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with Catalogue(tmp_path / "store") as catalogue:
        with full_disk(), pytest.raises((StoreError, OSError)):
            catalogue.create("a", 8)
        assert catalogue.collections() == []
        assert list((tmp_path / "store/collections").iterdir()) == []
        assert catalogue.create("a", 8).count() == 0


def test_what_a_crash_left_half_made_or_half_deleted_is_swept_away(tmp_path: Path) -> None:
    with Catalogue(tmp_path / "store") as catalogue:
        catalogue.create("a", 8)
    place = tmp_path / "store/collections"
    for name in (".new-b", ".old-c"):
        shutil.copytree(place / "a", place / name)
    with Catalogue(tmp_path / "store", read_only=True) as catalogue:
        assert catalogue.collections() == ["a"]
    with Catalogue(tmp_path / "store") as catalogue:
        assert catalogue.collections() == ["a"]
    assert [folder.name for folder in place.iterdir()] == ["a"]


def test_a_deletion_that_is_cut_short_is_a_deletion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with Catalogue(tmp_path / "store") as catalogue:
        catalogue.create("a", 8).upsert([Item(1, np.ones(8))])
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", cut_short)
            with pytest.raises(KeyboardInterrupt):
                catalogue.drop("a")
        assert catalogue.collections() == []
    with Catalogue(tmp_path / "store") as catalogue:
        assert catalogue.create("a", 4).count() == 0


def test_a_file_that_is_no_database_yet_is_refused_in_one_line(tmp_path: Path) -> None:
    with FaissStore.open(tmp_path / "store", dim=4) as store:
        place = store.place
    for file in place.iterdir():
        file.unlink()
    (place / "items.db").touch()
    for read_only in (True, False):
        with pytest.raises(StoreDamaged, match="holds no collection"):
            FaissStore.open(tmp_path / "store", read_only=read_only)


def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    with Catalogue(tmp_path / "store") as catalogue:
        place = tmp_path / "store/collections/a"
        place.mkdir()
        catalogue.create("a", 4)
        catalogue.drop("a")
        place.mkdir()
        (place / "notes.txt").touch()
        with pytest.raises(StoreError, match="move them away"):
            catalogue.create("a", 4)
    assert (place / "notes.txt").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_disk_knows_of_a_new_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with Catalogue(tmp_path / "new" / "store") as catalogue:
        assert {str(tmp_path), str(tmp_path / "new"), str(tmp_path / "new/store")} <= set(synced)
        synced.clear()
        catalogue.create("a", 8)
        assert synced[-1] == str(tmp_path / "new/store/collections")


def test_a_store_opens_by_alias(tmp_path: Path) -> None:
    with Catalogue(tmp_path / "store") as catalogue:
        catalogue.create("model-2", 8, "two", "HNSW8")
        catalogue.set_alias("live", "model-2")
    with FaissStore.open(tmp_path / "store", collection="live") as store:
        assert store.name == "model-2"
        assert (store.dim, store.fingerprint, store.index) == (8, "two", "HNSW8")


def test_looking_only(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing):
        Catalogue(tmp_path / "store", read_only=True)
    with (
        FaissStore.open(tmp_path / "store", dim=4),
        Catalogue(tmp_path / "store", read_only=True) as catalogue,
    ):
        assert catalogue.collections() == ["default"]
        assert catalogue.collection().count() == 0
        with pytest.raises(ReadOnly):
            catalogue.set_alias("x", "default")
        with pytest.raises(ReadOnly):
            catalogue.drop("default")
