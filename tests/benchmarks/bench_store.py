"""Figures of the embedded store: import, start, memory, search, filters.

    python tests/benchmarks/bench_store.py --items 1000000 --index Flat --store /tmp/flat
    python tests/benchmarks/bench_store.py --index HNSW32 --spread 1.5 --store /tmp/hnsw --build
    python tests/benchmarks/bench_store.py --index HNSW32 --spread 1.5 --store /tmp/hnsw

Prints a table and, with --out, writes it as JSON. Everything runs in this process on one search thread. The
vectors are unit vectors in clusters of 20 on average, queries are further draws from the same clusters.
--spread is the clusters' width against the distance of their centres from the origin: with 0.6 neighbours are
easy to tell apart, from about 1.5 on clusters overlap and an approximate search has to work for its recall. A
store that is there already is measured as it is; --build ends after building it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.types import Item

PER_CLUSTER = 20
SELECTIVITIES = {"50%": 500, "10%": 100, "1%": 10, "0.1%": 1}


def clustered(rng: np.random.Generator, centres: np.ndarray, count: int, spread: float) -> np.ndarray:
    """(count, dim) float32 unit vectors near random centres."""
    rows = centres[rng.integers(len(centres), size=count)]
    rows = rows + rng.standard_normal(rows.shape, dtype=np.float32) * (spread / np.sqrt(rows.shape[1]))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def supply(items: int, dim: int, spread: float, block: int = 20_000) -> Iterator[list[Item]]:
    """Items in blocks; `bucket` is uniform in 0..999, so that `bucket < n` passes n per mille."""
    rng = np.random.default_rng(1)
    centres = centres_of(items, dim)
    for start in range(0, items, block):
        vectors = clustered(rng, centres, min(block, items - start), spread)
        buckets = rng.integers(1000, size=len(vectors)).tolist()
        yield [
            Item(f"item-{start + row:08d}", vector, f"class {bucket % 97}", {"bucket": bucket})
            for row, (vector, bucket) in enumerate(zip(vectors, buckets, strict=True))
        ]


def centres_of(items: int, dim: int) -> np.ndarray:
    """The centres for so many items, the same each time."""
    centres = np.random.default_rng(0).standard_normal((items // PER_CLUSTER, dim), dtype=np.float32)
    return centres / np.linalg.norm(centres, axis=1, keepdims=True)


def resident() -> int:
    """Bytes of this process that are in memory now, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def timed(work: Callable[[int], Any], repeats: int) -> dict[str, float]:
    """Milliseconds: median and 99th percentile of calls with 0, 1, ..."""
    taken = []
    for number in range(repeats):
        start = time.perf_counter()
        work(number)
        taken.append(1000 * (time.perf_counter() - start))
    return {"p50_ms": float(np.percentile(taken, 50)), "p99_ms": float(np.percentile(taken, 99))}


def recall(
    store: FaissStore, queries: np.ndarray, where: dict[str, Any] | None, effort: int | None = None
) -> float:
    """recall@10 against the exact search under the same filter."""
    found = store.search(queries, 10, where=where, with_metadata=False, effort=effort).hits
    right = store.search(queries, 10, where=where, exact=True, with_metadata=False).hits
    same = sum(len({a.id for a in x} & {b.id for b in y}) for x, y in zip(found, right, strict=True))
    return same / max(1, sum(len(hits) for hits in right))


def build(folder: Path, items: int, dim: int, index: str, spread: float, threads: int) -> dict[str, Any]:
    """Imports the items and merges them into one segment, which alone gets the index; figures of that."""
    tuning = Tuning(build_threads=threads, approximate_rows=items)
    with FaissStore.open(folder, dim=dim, index=index, tuning=tuning) as store:
        writing = 0.0
        for block in supply(items, dim, spread):  # drawing the vectors is not the store's work
            start = time.perf_counter()
            store.upsert(block)
            writing += time.perf_counter() - start
        start = time.perf_counter()
        store.flush()
        durable = time.perf_counter()
        store.create_field_index("metadata.bucket")
        store.compact()
        done = time.perf_counter()
    gc.collect()
    return {
        "import_per_second": items / writing,
        "flush_after_import_s": durable - start,
        "compact_s": done - durable,
    }


def bench(folder: Path, items: int, dim: int, spread: float, repeats: int) -> dict[str, Any]:
    """Opens the store and searches it."""
    figures: dict[str, Any] = {}
    empty = resident()
    start = time.perf_counter()
    store = FaissStore.open(folder, tuning=Tuning())
    queries = clustered(np.random.default_rng(2), centres_of(items, dim), 256, spread)
    store.search(queries[0])
    figures["ready_s"] = time.perf_counter() - start
    figures["segments"] = store.stats().segments
    largest = max(store._current.version.segments, key=len)
    for number in range(64):
        store.search(queries[number])
    figures["memory_over_vectors"] = (resident() - empty) / (items * dim * 4)

    def one(where: dict[str, Any] | None = None, **options: Any) -> Callable[[int], Any]:
        return lambda number: store.search(queries[number % 256], 10, where=where, **options)

    figures["search"] = timed(one(), repeats) | {"recall@10": recall(store, queries, None)}
    figures["effort"] = getattr(largest.approximate, "effort", None)
    for effort in (64, 256) if largest.approximate else ():
        figures[f"search_effort_{effort}"] = timed(one(effort=effort), repeats) | {
            "recall@10": recall(store, queries, None, effort)
        }
    figures["search_ids_only"] = timed(one(with_metadata=False), repeats)
    figures["search_grouped"] = timed(one(group_by="label"), repeats // 4)
    batch = timed(lambda number: store.search(queries[64 * (number % 4) :][:64], 10), max(5, repeats // 20))
    figures["search_batch_64"] = {name: value / 64 for name, value in batch.items()}
    for name, bound in SELECTIVITIES.items():
        where = {"metadata.bucket": {"lt": bound}}
        start = time.perf_counter()
        plan = store.search(queries[0], 10, where=where).plan
        first = 1000 * (time.perf_counter() - start)
        figures[f"filter_{name}"] = {
            **timed(one(where), repeats // 2),
            "first_ms": first,
            "recall@10": recall(store, queries, where),
            "strategy": plan.strategy,
            "explored": plan.explored,
        }
    figures["bare_faiss"] = timed(bare(store, queries), repeats)
    figures["write_one"] = timed(
        lambda number: store.upsert([Item("new", queries[number % 256])]), repeats // 4
    )
    figures["disk_bytes_per_item"] = store.stats().disk_bytes / items
    store.close()
    return figures


def bare(store: FaissStore, queries: np.ndarray) -> Callable[[int], Any]:
    """The indexes of all segments, asked one after the other without a store."""

    def search(number: int) -> None:
        query = queries[number % 256 :][:1]
        for segment in store._current.version.segments:
            if segment.approximate is not None:
                segment.approximate.search(query, 10)
            elif len(segment):
                faiss.knn(query, segment.vectors, 10, faiss.METRIC_INNER_PRODUCT)

    return search


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--index", default="Flat")
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--spread", type=float, default=0.6)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the build")
    parser.add_argument("--store", type=Path, help="built there and kept; default: a temporary folder")
    parser.add_argument("--build", action="store_true", help="end after building")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="kindred-store-") as name:
        folder = options.store or Path(name) / "store"
        if not folder.exists():
            figures = build(
                folder, options.items, options.dim, options.index, options.spread, options.threads
            )
        if not options.build:
            figures |= bench(folder, options.items, options.dim, options.spread, options.repeats)
    report = {
        "command": " ".join(["python", "tests/benchmarks/bench_store.py", *sys.argv[1:]]),
        "items": options.items,
        "dim": options.dim,
        "index": options.index,
        "spread": options.spread,
        "versions": {"faiss": faiss.__version__, "numpy": np.__version__, "sqlite": sqlite3.sqlite_version},
        **figures,
    }
    for name_, value in report.items():
        if isinstance(value, dict):
            value = "  ".join(
                f"{key} {part:.4g}" if isinstance(part, float) else f"{key} {part}"
                for key, part in value.items()
            )
        print(f"{name_:24} {value:.4g}" if isinstance(value, float) else f"{name_:24} {value}")
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
