"""The index is derived from the database: no row twice, and nothing missing after a failure in between."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.store import version
from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.manifest import SegmentFolder, _checksum
from serve.store.types import Item, StoreError

DIM = 8


def items(start: int, stop: int) -> list[Item]:
    rng = np.random.default_rng(start)
    return [Item(n, rng.standard_normal(DIM), "cat") for n in range(start, stop)]


def double_the_segment(place: Path) -> None:
    """What a crash in a merge could leave: the merged segment named beside the one that it replaces."""
    content = json.loads((place / "manifest.json").read_text())
    (entry,) = content["body"]["segments"]
    shutil.copytree(place / "segments" / entry["name"], place / "segments" / "twin")
    content["body"]["segments"].append({**entry, "name": "twin"})
    content["checksum"] = _checksum(content["body"])
    (place / "manifest.json").write_text(json.dumps(content))


def test_a_row_lives_in_one_segment(tmp_path: Path) -> None:
    with FaissStore.open(tmp_path / "store", dim=DIM) as store:
        store.upsert(items(0, 20))
        store.flush()
        place = store.place
    double_the_segment(place)
    for read_only in (True, False):
        with FaissStore.open(tmp_path / "store", read_only=read_only) as store:
            for where in (None, {"label": "cat"}):
                hits = store.search(np.ones(DIM), 100, where=where).hits[0]
                assert sorted(hit.id for hit in hits) == list(range(20))
    with FaissStore.open(tmp_path / "store") as store:
        store.delete([3])
        store.upsert(items(30, 40))
        store.purge()
        hits = store.search(np.ones(DIM), 100).hits[0]
        assert sorted(hit.id for hit in hits) == [n for n in range(20) if n != 3] + list(range(30, 40))
        assert len(list((place / "segments").iterdir())) == store.stats().segments == 1


@pytest.fixture
def store(tmp_path: Path) -> FaissStore:
    with FaissStore.open(
        tmp_path / "store", dim=DIM, tuning=Tuning(memtable_rows=10, build_threads=1)
    ) as store:
        store.upsert(items(0, 20))
        yield store


def fail(*_: Any, **__: Any) -> Any:
    raise MemoryError


def ids(store: FaissStore, where: dict[str, Any] | None = None) -> list[int]:
    return sorted(hit.id for hit in store.search(np.ones(DIM), 100, where=where).hits[0])


@pytest.mark.parametrize("write", ["upsert", "update", "delete"])
def test_a_publication_that_fails_is_made_up_for(
    store: FaissStore, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    monkeypatch.setattr(version.Version, "after", fail)
    real = version.recovered

    def recovered(*given: Any) -> Any:
        monkeypatch.undo()
        return real(*given)

    monkeypatch.setattr(version, "recovered", recovered)
    writes = {
        "upsert": lambda: store.upsert(items(20, 30)),
        "update": lambda: store.update(3, {"label": "dog"}),
        "delete": lambda: store.delete([3]),
    }
    writes[write]()
    everything = {"upsert": list(range(30)), "update": list(range(20))}
    expected = everything.get(write, [n for n in range(20) if n != 3])
    assert ids(store) == [item.id for item in store.scan()] == expected
    cats = [n for n in expected if write != "update" or n != 3]
    assert ids(store, {"label": "cat"}) == cats


def test_a_write_that_searches_cannot_see_yet_is_said_to_be_stored(
    store: FaissStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ids(store, {"label": "cat"}) == list(range(20))
    with monkeypatch.context() as patch:
        patch.setattr(version.Version, "after", fail)
        patch.setattr(version, "recovered", fail)
        with pytest.raises(StoreError, match="The write is stored"):
            store.upsert(items(20, 30))
        assert store.count() == 30
    # At once where the search looks at the database, and soon where it does not.
    assert ids(store, {"label": "cat"}) == list(range(30))
    until = time.monotonic() + 60
    while len(ids(store)) < 30 and time.monotonic() < until:
        time.sleep(0.01)
    assert ids(store) == list(range(30))
    store.upsert(items(30, 31))
    assert ids(store) == list(range(31))


def test_a_merge_beside_a_failed_publication_doubles_nothing(
    store: FaissStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.flush()
    store.upsert(items(20, 30))
    real = SegmentFolder.write
    todo = [True]

    def write(*given: Any, **options: Any) -> Any:
        entry = real(*given, **options)
        if todo:
            todo.pop()
            with monkeypatch.context() as patch:
                patch.setattr(version.Version, "after", fail)
                patch.setattr(version, "recovered", fail)
                with pytest.raises(StoreError, match="The write is stored"):
                    store.upsert(items(30, 40))
            ids(store, {"label": "cat"})
        return entry

    monkeypatch.setattr(SegmentFolder, "write", write)
    store.flush()
    assert ids(store) == ids(store, {"label": "cat"}) == list(range(40))
