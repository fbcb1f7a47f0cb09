"""Many writers and readers at once: no error, no stale read, and the final state equals brute force.

    python tests/soak/store_load.py --writers 16 --readers 64 --seconds 120

After each acknowledged write its writer searches and reads at once, and must see it. A reader searches at
random, with and without a filter, and derives from every hit's metadata what its vector and its label were:
the similarity and the label must be those of the version whose metadata the hit carries, the label must pass
the filter, and an item that is rewritten all the time but never deleted must always be found. Versions come
from upserts; updates give one another label and leave its vector.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
import traceback
from pathlib import Path

import numpy as np

from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.types import Hit, Item

DIM = 16
IDS = 40
TUNING = Tuning(memtable_rows=500, build_threads=1, approximate_rows=700)


def vector_of(version: str) -> np.ndarray:
    return np.random.default_rng(list(version.encode())).standard_normal(DIM).astype(np.float32)


def label_of(version: str, edit: int) -> str:
    return f"label {(len(version) + edit) % 5}"


def item_of(id_: str, version: str) -> Item:
    return Item(id_, vector_of(version), label_of(version, 0), {"version": version, "edit": 0})


def check_hit(hit: Hit, query: np.ndarray) -> None:
    label = label_of(hit.metadata["version"], hit.metadata["edit"])
    assert hit.label == label, f"{hit} should have {label}: two versions were mixed"
    vector = vector_of(hit.metadata["version"])
    right = float(vector @ query / np.linalg.norm(vector) / np.linalg.norm(query))
    assert abs(hit.similarity - right) < 1e-4, (
        f"{hit} should have similarity {right}: two versions were mixed"
    )


class Load:
    """The threads of one run, and what they count."""

    def __init__(self, store: FaissStore, seconds: float) -> None:
        self.store = store
        self.end = time.monotonic() + seconds
        self.writes = self.reads = 0
        self.models: list[dict[str, str]] = []
        self.errors: list[str] = []

    def run(self, work: str, number: int) -> None:
        try:
            getattr(self, work)(number)
        except BaseException:  # noqa: BLE001  (reported by the main thread)
            self.errors.append(traceback.format_exc())

    def writer(self, number: int) -> None:
        rng = random.Random(f"writer {number}")
        model = {f"{number}-always": f"{number}.0"}
        self.models.append(model)
        count = 0
        while time.monotonic() < self.end and not self.errors:
            count += 1
            known = rng.choice(list(model))
            if rng.random() < 0.3:
                label = label_of(model[known], count)
                self.store.update(known, {"label": label, "metadata": {"edit": count}})
                (item,) = self.store.get([known])
                assert item is not None, "an item that was updated is gone"
                assert (item.label, item.metadata["edit"]) == (label, count), "a stale label was read"
                hit = self.store.search(vector_of(model[known]), 1, where={"label": label}).hits[0][0]
                assert hit.id == known, f"stale read: {hit} instead of {known}"
                self.writes += 1
                continue
            ids = [f"{number}-{rng.randrange(IDS)}" for _ in range(rng.choice([1, 1, 4, 10]))]
            if rng.random() < 0.3:
                self.store.delete(ids)
                for id_ in ids:
                    model.pop(id_, None)
                assert self.store.get(ids) == [None] * len(ids), "a deleted item was read"
            else:
                versions = {id_: f"{number}.{count}.{id_}" for id_ in [*ids, f"{number}-always"]}
                self.store.upsert([item_of(id_, version) for id_, version in versions.items()])
                model.update(versions)
            id_ = rng.choice(ids)
            query = vector_of(model[id_]) if id_ in model else vector_of("nothing")
            hits = self.store.search(query, 3, exact=True).hits[0]
            if id_ in model:
                assert hits[0].id == id_, f"stale read: {hits[0]} instead of {id_}"
                assert hits[0].metadata["version"] == model[id_], "stale metadata"
            assert all(hit.id in model for hit in hits if str(hit.id).startswith(f"{number}-")), "a ghost"
            self.writes += 1

    def reader(self, number: int) -> None:
        rng = np.random.default_rng(number)
        while time.monotonic() < self.end and not self.errors:
            queries = rng.standard_normal((int(rng.integers(1, 4)), DIM)).astype(np.float32)
            where = [None, {"label": "label 2"}, {"id": {"in": ["0-always", "1-always"]}}][rng.integers(3)]
            result = self.store.search(queries, 8, where=where, exact=bool(rng.integers(2)))
            for query, hits in zip(queries, result.hits, strict=True):
                for hit in hits:
                    check_hit(hit, query)
                    if where and "label" in where:
                        assert hit.label == where["label"], f"{hit} does not pass the filter"
                similarities = [hit.similarity for hit in hits]
                assert similarities == sorted(similarities, reverse=True)
                assert len({hit.id for hit in hits}) == len(hits), "an item was found in two versions"
                if where and "id" in where:
                    assert {hit.id for hit in hits} == {"0-always", "1-always"}, (
                        "an item was gone for a moment"
                    )
            self.reads += 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--readers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--index", default="HNSW8")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kindred-store-") as name:
        with FaissStore.open(Path(name) / "store", dim=DIM, index=options.index, tuning=TUNING) as store:
            store.upsert([item_of(f"{n}-always", f"{n}.0") for n in range(options.writers)])
            load = Load(store, options.seconds)
            threads = [
                threading.Thread(target=load.run, args=(work, number))
                for work, count in (("writer", options.writers), ("reader", options.readers))
                for number in range(count)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not load.errors, load.errors[0]
            check_final(store, load)
        with FaissStore.open(Path(name) / "store", tuning=TUNING) as store:
            check_final(store, load)
            print(
                f"{options.writers} writers and {options.readers} readers for {options.seconds:.0f} s: "
                f"{load.writes} writes, {load.reads} searches, {store.count()} items; no error, no stale "
                "read, final state equals brute force"
            )


def check_final(store: FaissStore, load: Load) -> None:
    model = {id_: version for mine in load.models for id_, version in mine.items()}
    for number in range(len(load.models)):
        model.setdefault(f"{number}-always", f"{number}.0")
    assert {item.id: item.metadata["version"] for item in store.scan()} == model
    queries = np.random.default_rng(0).standard_normal((20, DIM)).astype(np.float32)
    ids = list(model)
    rows = np.stack([vector_of(model[id_]) for id_ in ids]).astype(np.float64)
    similarities = queries @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
    for row, hits in zip(similarities, store.search(queries, 10, exact=True).hits, strict=True):
        assert [hit.id for hit in hits] == [ids[at] for at in np.argsort(-row)[:10]]


if __name__ == "__main__":
    main()
