"""The stores that bench_store_peers compares, each in a process of its own.

    python bench_store_engines.py build NAME FOLDER THREADS ITEMS     builds it from FOLDER's vectors
    python bench_store_engines.py serve NAME FOLDER THREADS ITEMS     opens it and answers questions

Questions and answers are JSON, one object a line. A process runs on as many cores as it is given threads,
which bounds every library's threads alike, and imports its own store only: its memory is that store's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DIM = 128
K = 10
BUCKETS = 100  # a filter on one of them passes 1%
EFFORTS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)

Effort = int | list[int] | None
"""How far a search of the graph looks, as the engine counts it; None scans every vector."""


class Block(NamedTuple):
    """Rows that are written together: numbers as ids, (n, DIM) float32 vectors of length 1, n buckets."""

    ids: range
    vectors: np.ndarray
    buckets: list[int]

    def payloads(self) -> list[dict[str, Any]]:
        """What is kept beside each vector."""
        both = zip(self.ids, self.buckets, strict=True)
        return [{"label": f"class {id_ % 97}", "bucket": bucket} for id_, bucket in both]


class Kindred:
    """FaissStore with HNSW32. `upsert` commits to SQLite with synchronous=FULL: on disk when it returns."""

    efforts: tuple[Any, ...] = EFFORTS
    scans = True
    rows = 20_000

    def __init__(self, folder: Path, threads: int, items: int) -> None:
        from serve.store.collection import FaissStore
        from serve.store.database import Tuning
        from serve.store.types import Item

        self.item = Item
        # One graph at the end, as the peers build theirs, in place of one a segment as the import proceeds.
        tuning = Tuning(search_threads=threads, build_threads=threads, approximate_rows=items, device="cpu")
        self.store = FaissStore.open(folder, dim=DIM, index="HNSW32", tuning=tuning)

    def load(self, blocks: Iterator[Block]) -> None:
        for block in blocks:
            self.upsert(block)

    def index(self) -> None:
        self.store.create_field_index("metadata.bucket")
        self.store.compact()
        self.store.flush()

    def search(self, vector: np.ndarray, bucket: int | None, effort: Effort) -> Any:
        where = None if bucket is None else {"metadata.bucket": bucket}
        return self.store.search(vector, K, where=where, exact=effort is None, effort=effort).hits[0]

    def ids(self, found: Any) -> list[int]:
        return [hit.id for hit in found]

    def upsert(self, block: Block) -> None:
        self.store.upsert(
            self.item(id_, vector, payload["label"], {"bucket": payload["bucket"]})
            for id_, vector, payload in zip(block.ids, block.vectors, block.payloads(), strict=True)
        )

    def sync(self) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        self.store.close()


class Qdrant:
    """Qdrant Edge with its own HNSW (m 16). `update` writes to a mapped log; `flush` waits for the disk."""

    efforts: tuple[Any, ...] = EFFORTS
    scans = True
    rows = 5_000

    def __init__(self, folder: Path, threads: int, items: int) -> None:
        import qdrant_edge

        self.q = qdrant_edge
        if folder.exists():
            self.shard = self.q.EdgeShard.load(str(folder))
        else:
            vectors = self.q.EdgeVectorParams(size=DIM, distance=self.q.Distance.Cosine)
            config = self.q.EdgeConfig(vectors=vectors, max_search_threads=threads)
            self.shard = self.q.EdgeShard.create(str(folder), config)

    def load(self, blocks: Iterator[Block]) -> None:
        for block in blocks:
            self.upsert(block)
        self.sync()

    def index(self) -> None:
        kind = self.q.PayloadSchemaType.Integer
        self.shard.update(self.q.UpdateOperation.create_field_index("bucket", kind))
        self.shard.optimize()
        self.sync()

    def search(self, vector: np.ndarray, bucket: int | None, effort: Effort) -> Any:
        q = self.q
        condition = None
        if bucket is not None:
            condition = q.Filter(must=[q.FieldCondition("bucket", match=q.MatchValue(bucket))])
        params = q.SearchParams(exact=True) if effort is None else q.SearchParams(hnsw_ef=effort)
        return self.shard.query(
            q.QueryRequest(
                limit=K, query=q.Query.Nearest(vector), filter=condition, params=params, with_payload=True
            )
        )

    def ids(self, found: Any) -> list[int]:
        return [point.id for point in found]

    def upsert(self, block: Block) -> None:
        points = [
            self.q.Point(id_, vector, payload)
            for id_, vector, payload in zip(block.ids, block.vectors, block.payloads(), strict=True)
        ]
        self.shard.update(self.q.UpdateOperation.upsert_points(points))

    def sync(self) -> None:
        self.shard.flush()

    def close(self) -> None:
        self.shard.close()


class Lance:
    """LanceDB with one graph of quantized vectors. Files are renamed into place, not synced.

    An effort is ef and refine_factor, or 0 where hits are not refined; ef has to be K times that at least.
    """

    efforts: tuple[Any, ...] = tuple(
        [ef, refine] for ef in EFFORTS[1:14:2] for refine in (0, 2, 4, 8) if ef >= K * refine
    )
    scans = True
    rows = 20_000

    def __init__(self, folder: Path, threads: int, items: int) -> None:
        import lancedb
        import pyarrow

        self.arrow = pyarrow
        self.schema = pyarrow.schema(
            [
                ("id", pyarrow.int64()),
                ("vector", pyarrow.list_(pyarrow.float32(), DIM)),
                ("label", pyarrow.string()),
                ("bucket", pyarrow.int64()),
            ]
        )
        database = lancedb.connect(folder)
        self.table = database.create_table("items", schema=self.schema, exist_ok=True)

    def batch(self, block: Block) -> Any:
        arrow, payloads = self.arrow, block.payloads()
        flat = arrow.array(np.ascontiguousarray(block.vectors).reshape(-1))
        columns = [
            arrow.array(block.ids, arrow.int64()),
            arrow.FixedSizeListArray.from_arrays(flat, DIM),
            arrow.array([payload["label"] for payload in payloads]),
            arrow.array(block.buckets, arrow.int64()),
        ]
        return arrow.RecordBatch.from_arrays(columns, schema=self.schema)

    def load(self, blocks: Iterator[Block]) -> None:
        """One streamed write, which LanceDB recommends: each write makes a fragment and a version."""
        self.table.add(self.arrow.RecordBatchReader.from_batches(self.schema, map(self.batch, blocks)))

    def index(self) -> None:
        from lancedb.index import Bitmap, BTree, HnswSq

        self.table.create_index("vector", config=HnswSq(distance_type="cosine", num_partitions=1))
        self.table.create_index("bucket", config=Bitmap())
        self.table.create_index("id", config=BTree())  # what an upsert looks ids up in
        self.table.optimize()

    def search(self, vector: np.ndarray, bucket: int | None, effort: Effort) -> Any:
        query = self.table.search(vector).distance_type("cosine").limit(K)
        query = query.select(["id", "label", "bucket", "_distance"])
        if bucket is not None:
            query = query.where(f"bucket = {bucket}")
        if effort is None:
            query = query.bypass_vector_index()
        else:
            ef, refine = effort
            query = query.ef(ef)
            query = query.refine_factor(refine) if refine else query
        return query.to_arrow()

    def ids(self, found: Any) -> list[int]:
        return found["id"].to_pylist()

    def upsert(self, block: Block) -> None:
        merge = self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(self.arrow.Table.from_batches([self.batch(block)]))

    def close(self) -> None:
        del self.table


class Chroma:
    """Chroma with its own HNSW (16 neighbours), built as rows arrive. SQLite syncs what `upsert` writes."""

    efforts: tuple[Any, ...] = EFFORTS
    scans = False  # it asks the graph always
    rows = 5_000  # it takes 5,461 at most

    def __init__(self, folder: Path, threads: int, items: int) -> None:
        self.folder = folder
        self.effort: Effort = None
        self.open()

    def open(self) -> None:
        import chromadb

        settings = chromadb.config.Settings(anonymized_telemetry=False)
        self.client = chromadb.PersistentClient(self.folder, settings=settings)
        self.collection = self.client.get_or_create_collection(
            "items", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )

    def load(self, blocks: Iterator[Block]) -> None:
        for block in blocks:
            self.upsert(block)

    def index(self) -> None:
        """Nothing but a first query, which takes in what the log still holds."""
        self.search(np.ones(DIM, np.float32), None, EFFORTS[0])

    def search(self, vector: np.ndarray, bucket: int | None, effort: Effort) -> Any:
        if effort != self.effort:  # it belongs to the collection, and an index in memory keeps what it had
            self.collection.modify(configuration={"hnsw": {"ef_search": effort}})
            self.client.close()
            self.open()
            self.effort = effort
        return self.collection.query(
            query_embeddings=vector[None],
            n_results=K,
            where=None if bucket is None else {"bucket": bucket},
            include=["metadatas", "distances"],
        )

    def ids(self, found: Any) -> list[int]:
        return [int(id_) for id_ in found["ids"][0]]

    def upsert(self, block: Block) -> None:
        self.collection.upsert(
            ids=[str(id_) for id_ in block.ids], embeddings=block.vectors, metadatas=block.payloads()
        )

    def sync(self) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        self.client.close()


ENGINES: dict[str, Any] = {"kindred": Kindred, "qdrant-edge": Qdrant, "lancedb": Lance, "chroma": Chroma}


def blocks_of(folder: Path, items: int, rows: int) -> Iterator[Block]:
    """The vectors and buckets that the parent wrote, without keeping them in memory."""
    for start in range(0, items, rows):
        count = min(rows, items - start)
        vectors = np.fromfile(folder / "vectors.f32", np.float32, count * DIM, offset=start * DIM * 4)
        buckets = np.fromfile(folder / "buckets.i64", np.int64, count, offset=start * 8)
        yield Block(range(start, start + count), vectors.reshape(count, DIM), buckets.tolist())


def peak() -> int:
    """Most bytes of this process that were in memory at a time, mapped files included."""
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's before exec
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def disk(folder: Path) -> int:
    """Bytes that the folder's files occupy; a file with holes counts without them."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def build(engine: Any, folder: Path, items: int) -> dict[str, float]:
    """Imports everything and indexes it."""
    start = time.perf_counter()
    engine.load(blocks_of(folder, items, engine.rows))
    loaded = time.perf_counter()
    engine.index()
    done = time.perf_counter()
    return {"import_per_second": items / (loaded - start), "index_s": done - loaded}


def answer(engine: Any, queries: np.ndarray, items: int, asked: dict[str, Any]) -> dict[str, Any]:
    """Times of one kind of call, in milliseconds, and the ids that searches found.

    `asked` has `first` and `count`, and either `effort` and `filtered`, or `write`: "ack" times until the
    store has taken a new row, "disk" until it has also been told to put it on the disk.
    """
    times, found = [], []
    for number in range(asked["first"], asked["first"] + asked["count"]):
        vector = queries[number % len(queries)]
        if "write" in asked:
            block = Block(range(items + number, items + number + 1), vector[None], [number % BUCKETS])
        start = time.perf_counter()
        if "write" in asked:
            engine.upsert(block)
            if asked["write"] == "disk":
                engine.sync()
        else:
            bucket = number % BUCKETS if asked["filtered"] else None
            hits = engine.search(vector, bucket, asked["effort"])
        times.append(1000 * (time.perf_counter() - start))
        if "write" not in asked:
            found.append(engine.ids(hits))
    return {"ms": times, "ids": found}


def main() -> None:
    role, name, place, threads, count = sys.argv[1:]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    folder, items = Path(place), int(count)
    start = time.perf_counter()
    engine = ENGINES[name](folder / name, int(threads), items)
    if role == "build":
        empty = peak()
        figures = build(engine, folder, items)
        engine.close()
        sizes = {"empty_bytes": empty, "build_peak_bytes": peak(), "disk_bytes": disk(folder / name)}
        print(json.dumps(figures | sizes))
        return
    queries = np.load(folder / "queries.npy")
    engine.search(queries[0], None, engine.efforts[0])
    ready = {"ready_s": time.perf_counter() - start, "efforts": engine.efforts, "scans": engine.scans}
    print(json.dumps(ready | {"syncs": hasattr(engine, "sync")}), flush=True)
    for line in sys.stdin:
        result = answer(engine, queries, items, json.loads(line))
        print(json.dumps(result | {"serve_peak_bytes": peak()}), flush=True)
    engine.close()


if __name__ == "__main__":
    main()
