"""FaissStore beside milvus-lite through `MilvusStore`: import, search, filters, recall, time to open.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/bench_milvus.py --items 20000

Vectors are clustered, dim 128, one thread. `bucket` is uniform in 0..999: `bucket < n` passes n per mille.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from serve.store.catalogue import open_store
from serve.store.types import Item, Store

DIM = 128
FILTERS = (500, 100, 10, 1)


def clustered(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, DIM) float32 around 500 centres."""
    centres = np.random.default_rng(0).standard_normal((500, DIM))
    spread = 0.6 * rng.standard_normal((count, DIM))
    return (centres[rng.integers(len(centres), size=count)] + spread).astype(np.float32)


def seconds(work: Callable[[], object], times: int) -> float:
    """Median of some runs."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def recall(store: Store, truth: Store, queries: np.ndarray, where: dict | None) -> float:
    """Recall@10 of a store against the exact one."""
    found = store.search(queries, 10, where=where, with_metadata=False).hits
    right = truth.search(queries, 10, where=where, exact=True, with_metadata=False).hits
    shares = [
        len({hit.id for hit in a} & {hit.id for hit in b}) / len(b) for a, b in zip(found, right, strict=True)
    ]
    return float(np.mean(shares))


def filled(place: str, index: str, vectors: np.ndarray, buckets: np.ndarray) -> tuple[Store, float, float]:
    """A store with these vectors, opened anew; items a second of the import, and seconds until it answers."""
    store: Store = open_store(place, DIM, index=index)
    started = time.perf_counter()
    for at in range(0, len(vectors), 2000):
        rows = range(at, min(at + 2000, len(vectors)))
        store.upsert(Item(n, vectors[n], metadata={"bucket": int(buckets[n])}) for n in rows)
    store.flush()
    rate = len(vectors) / (time.perf_counter() - started)
    store.close()
    started = time.perf_counter()
    store = open_store(place)
    store.search(vectors[0], 1)
    return store, rate, time.perf_counter() - started


def milliseconds(store: Store, queries: np.ndarray, where: dict | None, times: int) -> float:
    """Median of a search for 10 neighbours."""
    return 1e3 * seconds(lambda: store.search(queries, 10, where=where), times)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser()
    options.add_argument("--items", type=int, default=20_000)
    options.add_argument("--queries", type=int, default=50)
    chosen = options.parse_args()
    rng = np.random.default_rng(1)
    vectors, queries = clustered(rng, chosen.items), clustered(rng, chosen.queries)
    buckets = rng.permutation(chosen.items) % 1000
    filters = [{"metadata.bucket": {"lt": n}} for n in FILTERS]
    table = Table(title=f"{chosen.items:,} x {DIM}")
    columns = ["import/s", "search ms", "64 at once ms", *(f"filter {n / 10:g}% ms" for n in FILTERS)]
    for name in ["store", *columns, "recall@10", *(f"at {n / 10:g}%" for n in FILTERS), "open s"]:
        table.add_column(name, justify="left" if name == "store" else "right")
    with tempfile.TemporaryDirectory() as folder:
        truth, rate, opened = filled(f"{folder}/truth", "Flat", vectors, buckets)
        for place, index in (
            (f"{folder}/faiss-flat", "Flat"),
            (f"{folder}/faiss-hnsw", "HNSW32"),
            (f"file:{folder}/lite-flat", "FLAT"),
            (f"file:{folder}/lite-hnsw", "HNSW"),
        ):
            store, rate, opened = filled(place, index, vectors, buckets)
            row = [place.rpartition("/")[2], f"{rate:,.0f}"]
            row.append(f"{milliseconds(store, queries[0], None, 20):.1f}")
            row.append(f"{milliseconds(store, np.resize(queries, (64, DIM)), None, 5):.0f}")
            row += [f"{milliseconds(store, queries[0], one, 3):.0f}" for one in filters]
            row += [f"{recall(store, truth, queries, one):.3f}" for one in (None, *filters)]
            table.add_row(*row, f"{opened:.1f}")
            store.close()
        truth.close()
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
