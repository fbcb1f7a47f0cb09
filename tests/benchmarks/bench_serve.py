"""Requests a second and latency of the service on loopback, beside the limits of the process and other
servers.

    python tests/benchmarks/bench_serve.py --folder /tmp/bench --only build
    python tests/benchmarks/bench_serve.py --folder /tmp/bench --only hnsw --servers kindred minimal

The first run builds the stores into the folder, later ones use them again. LitServe and milvus-lite take part
where they are installed. Prints a table and writes it as JSON with --out.

What is compared with what:

- **bare FAISS**: one process, one thread, one query a call through FAISS's own Python wrapper, k = 10 (HNSW
  with efSearch 64, as the store's); measured anew before each server.
- **Vector queries** are bound to one core: bare FAISS, the in-process store and every server (all processes
  of LitServe) run on core 0 alone, the load generator on core 1, so that it takes nothing from them.
- **echo** is an event loop that answers without a search: what the loopback and the load generator take. A
  single client waits for both in turn, so no server gives it more than 1 / (1 / FAISS + 1 / echo) a second.
- **thinnest** is the same loop with FAISS's search in it: no HTTP parser, no checks, no ids, no counters.
- **asgi** is uvicorn with one function that searches, the most that a service on uvicorn can give.
- **Image queries** may use every core, and the load generator lives on them too. The limit is the same work
  in this process: decode, forward pass and search in as many threads as clients, at most one a core.
- Beside the rate stands the CPU time of the server's processes for a request (user and system). The limit's
  CPU time over the server's says what share of the limit is left once the generator's part and idle time are
  out of the picture.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from bench_serve_kit import (
    QUERIES,
    ROWS,
    SERVER_CORE,
    in_process,
    load,
    note,
    on_core,
    picture,
    request,
    server,
    upload,
    vectors_of,
)
from bench_serve_targets import DIM, make_bundle

from serve.store.collection import FaissStore
from serve.store.types import Item

KINDS = {"flat": "Flat", "hnsw": "HNSW32"}


def build(folder: Path, items: int) -> None:
    """A store and a bare FAISS index of the same vectors for each kind, unless they are there."""
    vectors = vectors_of(items, 1)
    fingerprint = make_bundle().fingerprint
    for kind, factory in KINDS.items():
        if not (folder / f"{kind}.faiss").exists():
            with FaissStore.open(folder / kind, DIM, fingerprint, factory) as store:
                store.upsert(Item(row, vector, f"class {row % 97}") for row, vector in enumerate(vectors))
                store.compact()
            bare = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
            bare.add(vectors)
            if kind == "hnsw":
                faiss.downcast_index(bare).hnsw.efSearch = 64
            faiss.write_index(bare, str(folder / f"{kind}.faiss"))


def vector_queries(
    folder: Path, kind: str, seconds: float, concurrencies: list[int], servers: list[str]
) -> None:
    queries = vectors_of(QUERIES, 2)
    bare = faiss.read_index(str(folder / f"{kind}.faiss"))
    turn = itertools.cycle(range(len(queries)))

    def bare_faiss() -> dict[str, Any]:
        """Measured anew beside each server: a machine that is shared is not always equally quick."""
        with on_core(SERVER_CORE):
            return in_process(
                f"bare FAISS {kind}", lambda: bare.search(queries[(at := next(turn)) : at + 1], 10), seconds
            )

    limit = bare_faiss()
    with on_core(SERVER_CORE), FaissStore.open(folder / kind) as store:
        store.search(queries[0])
        figures = in_process(f"store {kind}", lambda: store.search(queries[next(turn)], 10), seconds)
        ROWS[-1]["share_of_limit"] = figures["per_second"] / limit["per_second"]
    as_json = [json.dumps({"vector": query.tolist(), "k": 10}).encode() for query in queries]
    as_bytes = [request("/v1/raw/search", "application/octet-stream", query.tobytes()) for query in queries]
    rivals = {
        "kindred": {
            "raw, ids": as_bytes,
            "JSON, labels": [request("/v1/search/vector", "application/json", body) for body in as_json],
        },
        "minimal": {"JSON, labels": [request("/vector", "application/json", body) for body in as_json]},
        "echo": {"no search": as_bytes},
        "thinnest": {"raw, ids": as_bytes},
        "asgi": {"raw, ids": as_bytes},
        "litserve": {"JSON, ids": [request("/predict", "application/json", body) for body in as_json]},
    }
    for name in servers:
        if name == "litserve" and not importlib.util.find_spec("litserve"):
            continue
        limit = bare_faiss()
        with server(name, folder, kind, pinned=True) as target:
            for case, requests in rivals[name].items():
                for clients in concurrencies:
                    result = load(folder, requests, target, seconds, "--clients", str(clients), pinned=True)
                    note(f"{name} {kind}: {case}", clients, result["200"], limit)


def milvus_queries(folder: Path, seconds: float, concurrencies: list[int]) -> None:
    """milvus-lite has no HTTP; pymilvus in as many threads of this process as clients is the whole of it."""
    if not importlib.util.find_spec("milvus_lite"):
        return
    from pymilvus import MilvusClient

    client = MilvusClient(str(folder / "milvus.db"))
    vectors = np.asarray(faiss.read_index(str(folder / "flat.faiss")).reconstruct_n())
    queries = vectors_of(QUERIES, 2).tolist()
    turn = itertools.cycle(range(QUERIES))
    for kind, index in (("flat", "FLAT"), ("hnsw", "HNSW")):
        if not client.has_collection(kind):
            client.create_collection(kind, dimension=DIM, metric_type="COSINE", auto_id=False)
            for start in range(0, len(vectors), 5000):
                block = vectors[start : start + 5000].tolist()
                client.insert(kind, [{"id": start + at, "vector": v} for at, v in enumerate(block)])
            client.release_collection(kind)
            client.drop_index(kind, "vector")
            parameters = client.prepare_index_params()
            build = {"M": 32, "efConstruction": 100} if index == "HNSW" else {}
            parameters.add_index("vector", index_type=index, metric_type="COSINE", params=build)
            client.create_index(kind, parameters)
        client.load_collection(kind)

        def search(kind: str = kind) -> None:
            options = {"params": {"ef": 64}} if kind == "hnsw" else {}
            client.search(kind, [queries[next(turn)]], limit=10, search_params=options)

        for clients in concurrencies:
            in_process(f"milvus-lite {kind}", search, seconds, clients)


def image_queries(folder: Path, seconds: float, concurrencies: list[int], servers: list[str]) -> None:
    bundle = make_bundle()
    content = picture()
    cores = os.cpu_count() or 1
    bare = faiss.read_index(str(folder / "hnsw.faiss"))
    torch.set_num_threads(1)
    limits = {
        workers: in_process(
            "decode + forward + search",
            lambda: bare.search(bundle.embed([content]), 10),
            seconds,
            workers=workers,
        )
        for workers in sorted({min(clients, cores) for clients in concurrencies})
    }
    paths = {"kindred": "/v1/search", "minimal": "/image"}
    for name in servers:
        if name not in paths:
            continue
        with server(name, folder, "hnsw") as target:
            for clients in concurrencies:
                result = load(folder, upload(paths[name]), target, seconds, "--clients", str(clients))["200"]
                note(f"{name}: 640 px JPEG", clients, result, limits[min(clients, cores)])


def overload(folder: Path, seconds: float) -> None:
    """Ten times what the service can do, in an open loop; the budget is twice the unloaded p99."""
    cores = os.cpu_count() or 1
    with server("kindred", folder, "hnsw") as target:
        alone = load(folder, upload("/v1/search"), target, seconds, "--clients", "1")["200"]
        note("overload: unloaded", 1, alone)
        most = load(folder, upload("/v1/search"), target, seconds, "--clients", str(4 * cores))["200"]
        note("overload: sustainable", 4 * cores, most)
    with server("kindred", folder, "hnsw", "--budget", str(2 * alone["p99_ms"])) as target:
        load(folder, upload("/v1/search"), target, 2, "--clients", "2")  # the service learns its own rate
        rate = 10 * most["per_second"]
        results = load(folder, upload("/v1/search"), target, seconds, "--rate", str(rate))
    for status, figures in sorted(results.items()):
        note(f"overload at {rate:.0f}/s: status {status}", "open", figures)
    if "200" in results:
        print(f"admitted p99: {results['200']['p99_ms'] / alone['p99_ms']:.1f} × the unloaded p99")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", choices=["build", "flat", "hnsw", "image", "overload", "milvus"])
    servers = ["kindred", "minimal", "litserve", "echo", "thinnest", "asgi"]
    parser.add_argument("--servers", choices=servers, nargs="+", default=servers)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    folder = given.folder / str(given.items)
    folder.mkdir(parents=True, exist_ok=True)
    build(folder, given.items)
    for kind in KINDS:
        if given.only in (None, kind):
            vector_queries(folder, kind, given.seconds, given.concurrency, given.servers)
    if given.only in (None, "image"):
        image_queries(folder, given.seconds, given.concurrency, given.servers)
    if given.only in (None, "overload"):
        overload(folder, given.seconds)
    if given.only in (None, "milvus"):
        milvus_queries(folder, given.seconds, given.concurrency)
    if given.out:
        versions = {"faiss": faiss.__version__, "torch": torch.__version__, "python": sys.version.split()[0]}
        record = {
            "command": " ".join(sys.argv),
            "versions": versions,
            "seed": 0,
            "items": given.items,
            "rows": ROWS,
        }
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
