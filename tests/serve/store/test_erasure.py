"""Erased means that no byte of it is left in the folder."""

from pathlib import Path

import numpy as np
import pytest

from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.types import Item


def places_of(folder: Path, needle: bytes) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]


@pytest.mark.parametrize("index", ["Flat", "HNSW8", "IVF2,Flat"])
@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("way", ["delete", "replace"])
def test_nothing_is_left_of_what_was_erased(
    tmp_path: Path, items: list[Item], index: str, flushed: bool, way: str
) -> None:
    tuning = Tuning(memtable_rows=50, approximate_rows=60, build_threads=1)
    folder = tmp_path / "store"
    secret = Item(
        "secret-id", items[0].vector, "secret-label", {"note": "secret-note"}, b"secret-thumbnail" * 900
    )
    unit = np.asarray(secret.vector) / np.linalg.norm(np.asarray(secret.vector))
    with FaissStore.open(folder, dim=16, index=index, tuning=tuning) as store:
        store.upsert([*items[1:100], secret, *items[100:]])
        if flushed:
            store.flush()
        vector = store.get(["secret-id"], with_vectors=True)[0].vector.tobytes()
        np.testing.assert_allclose(np.frombuffer(vector, "<f4"), unit, rtol=1e-5)
        traces = [vector, b"secret-id", b"secret-label", b"secret-note", b"secret-thumbnail"]
        assert all(places_of(folder, trace) for trace in traces)
        if way == "delete":
            assert store.delete(["secret-id"], erase=True) == 1
        else:
            store.upsert([Item("public-id", items[0].vector * -1), Item("secret-id", -unit)])
            store.purge()
            assert store.delete(["secret-id"], erase=True) == 1
        for trace in traces:
            assert places_of(folder, trace) == []
        assert store.search(unit, 250, exact=True).hits[0][0].id != "secret-id"
        assert store.count() == 199 + (way == "replace")
    for trace in traces:
        assert places_of(folder, trace) == []
    with FaissStore.open(folder) as store:
        assert store.get([items[5].id])[0] is not None
