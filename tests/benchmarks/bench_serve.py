"""Requests a second and latency of the service on loopback, beside the limits of the process and other
servers.

    python tests/benchmarks/bench_serve.py --items 100000 --folder /tmp/bench

The first run builds the stores into the folder, later ones use them again. The load generator is a process of
its own. LitServe and milvus-lite take part where they are installed (``pip install .[bench]`` in an
environment of its own). Prints a table and writes it as JSON with --out.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import msgspec
import numpy as np
import torch
from bench_serve_targets import DIM, make_bundle
from PIL import Image

from serve.store.faiss_store import FaissStore
from serve.store.protocol import Item

HERE = Path(__file__).parent
KINDS = {"flat": "Flat", "hnsw": "HNSW32"}
ROWS: list[dict[str, Any]] = []


def vectors_of(count: int, seed: int) -> np.ndarray:
    """(count, DIM) float32 unit vectors in 5,000 clusters."""
    centres = np.random.default_rng(0).standard_normal((5000, DIM), dtype=np.float32)
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(5000, size=count)] + 0.6 * rng.standard_normal((count, DIM), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def build(folder: Path, items: int) -> None:
    """A store and a bare FAISS index of the same vectors for each kind, unless they are there."""
    vectors = vectors_of(items, 1)
    fingerprint = make_bundle().fingerprint
    for kind, factory in KINDS.items():
        if not (folder / f"{kind}.faiss").exists():
            with FaissStore.open(folder / kind, DIM, fingerprint, factory) as store:
                store.upsert(Item(row, vector, f"class {row % 97}") for row, vector in enumerate(vectors))
                store.snapshot()
            bare = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
            bare.add(vectors)
            if kind == "hnsw":
                faiss.downcast_index(bare).hnsw.efSearch = 64
            faiss.write_index(bare, str(folder / f"{kind}.faiss"))


def picture() -> bytes:
    """A 640 × 480 JPEG with photograph-like detail."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def request(path: str, kind: str, body: bytes) -> bytes:
    """A whole HTTP request."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def upload(path: str) -> list[bytes]:
    start = b'--b\r\ncontent-disposition: form-data; name="image"; filename="a.jpg"\r\n'
    body = start + b"content-type: image/jpeg\r\n\r\n" + picture() + b"\r\n--b--\r\n"
    return [request(path, "multipart/form-data; boundary=b", body)]


@contextmanager
def server(name: str, folder: Path, kind: str, *arguments: str) -> Iterator[int]:
    """Starts a server process and waits until it accepts connections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        str(HERE / "bench_serve_targets.py"),
        name,
        str(folder),
        kind,
        str(port),
        *arguments,
    ]
    process = subprocess.Popen(command, cwd=HERE.parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{name} did not start") from None
                time.sleep(0.1)
        time.sleep(1.0)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def load(folder: Path, requests: list[bytes], port: int, seconds: float, *arguments: str) -> dict[str, Any]:
    """Runs the load generator."""
    file = folder / "requests.msgpack"
    file.write_bytes(msgspec.msgpack.encode(requests))
    command = [
        sys.executable,
        str(HERE / "bench_serve_load.py"),
        str(file),
        str(port),
        str(seconds),
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE.parents[1])
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def note(what: str, clients: int | str, figures: dict[str, Any], limit: float | None = None) -> None:
    """Prints and keeps one row."""
    share = "" if not limit else f"{figures['per_second'] / limit:6.0%}"
    print(
        f"{what:44} {clients!s:>6} {figures['per_second']:9.0f}/s  p50 {figures['p50_ms']:7.2f} ms  "
        f"p99 {figures['p99_ms']:7.2f} ms  {share}",
        flush=True,
    )
    ROWS.append(
        {
            "what": what,
            "clients": clients,
            **figures,
            "share_of_limit": limit and figures["per_second"] / limit,
        }
    )


def in_process(what: str, work: Callable[[], Any], seconds: float, workers: int = 1) -> float:
    """The limit: the same work in a loop, without HTTP. Returns repetitions a second."""

    def loop(until: float) -> list[float]:
        faiss.omp_set_num_threads(1)
        times = []
        while (started := time.perf_counter()) < until:
            work()
            times.append(time.perf_counter() - started)
        return times

    loop(time.perf_counter() + 0.5)
    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(loop, [time.perf_counter() + seconds] * workers))
    times = np.concatenate(parts)
    figures = {"per_second": len(times) / seconds, "count": len(times)}
    figures |= {"p50_ms": float(np.median(times)) * 1e3, "p99_ms": float(np.percentile(times, 99)) * 1e3}
    note(f"limit: {what}", workers, figures)
    return figures["per_second"]


def vector_queries(folder: Path, kind: str, seconds: float, concurrencies: list[int]) -> None:
    queries = vectors_of(256, 2)
    bare = faiss.read_index(str(folder / f"{kind}.faiss"))
    turn = itertools.cycle(range(len(queries)))
    limit = in_process(
        f"bare FAISS {kind}", lambda: bare.search(queries[(at := next(turn)) : at + 1], 10), seconds
    )
    as_json = [json.dumps({"vector": query.tolist(), "k": 10}).encode() for query in queries]
    as_bytes = [request("/v1/raw/search", "application/octet-stream", query.tobytes()) for query in queries]
    rivals = {
        "kindred": {
            "raw, ids": as_bytes,
            "JSON, labels": [request("/v1/search/vector", "application/json", body) for body in as_json],
        },
        "minimal": {"JSON, labels": [request("/vector", "application/json", body) for body in as_json]},
    }
    if importlib.util.find_spec("litserve"):
        rivals["litserve"] = {
            "JSON, ids": [request("/predict", "application/json", body) for body in as_json]
        }
    for name, cases in rivals.items():
        with server(name, folder, kind) as port:
            for case, requests in cases.items():
                for clients in concurrencies:
                    result = load(folder, requests, port, seconds, "--clients", str(clients))
                    note(f"{name} {kind}: {case}", clients, result["200"], limit)


def milvus_queries(folder: Path, seconds: float) -> None:
    """milvus-lite through pymilvus has no HTTP; its client in this process is the whole of it."""
    if not importlib.util.find_spec("milvus_lite"):
        return
    from pymilvus import MilvusClient

    client = MilvusClient(str(folder / "milvus.db"))
    vectors = vectors_of(20_000, 1)
    if not client.has_collection("bench"):
        client.create_collection("bench", dimension=DIM, metric_type="COSINE")
        for start in range(0, len(vectors), 2000):
            block = vectors[start : start + 2000]
            client.insert("bench", [{"id": start + at, "vector": v.tolist()} for at, v in enumerate(block)])
    query = vectors_of(1, 2).tolist()
    in_process("milvus-lite 20k", lambda: client.search("bench", query, limit=10), seconds)


def image_queries(folder: Path, seconds: float, concurrencies: list[int]) -> None:
    bundle = make_bundle()
    content = picture()
    cores = os.cpu_count() or 1
    bare = faiss.read_index(str(folder / "hnsw.faiss"))
    torch.set_num_threads(1)
    limit = in_process(
        "decode + forward + search", lambda: bare.search(bundle.embed([content]), 10), seconds, workers=cores
    )
    sustainable = 0.0
    unloaded = 0.0
    with server("kindred", folder, "hnsw") as port:
        for clients in concurrencies:
            result = load(folder, upload("/v1/search"), port, seconds, "--clients", str(clients))["200"]
            note("kindred: 640 px JPEG", clients, result, limit)
            sustainable = max(sustainable, result["per_second"])
            unloaded = unloaded or result["p99_ms"]
    with server("minimal", folder, "hnsw") as port:
        for clients in concurrencies:
            result = load(folder, upload("/image"), port, seconds, "--clients", str(clients))["200"]
            note("minimal: 640 px JPEG", clients, result, limit)
    budget = 2 * unloaded
    with server("kindred", folder, "hnsw", "--budget", str(budget)) as port:
        load(folder, upload("/v1/search"), port, 2, "--clients", "2")  # the service learns its own rate
        results = load(folder, upload("/v1/search"), port, seconds, "--rate", str(10 * sustainable))
    for status, figures in sorted(results.items()):
        note(f"10 × the sustainable rate: status {status}", "open", figures)
    if "200" in results:
        print(
            f"admitted p99: {results['200']['p99_ms'] / unloaded:.1f} × the unloaded p99 of {unloaded:.1f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", choices=["build", "flat", "hnsw", "image", "milvus"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    folder = given.folder / str(given.items)
    folder.mkdir(parents=True, exist_ok=True)
    build(folder, given.items)
    for kind in KINDS:
        if given.only in (None, kind):
            vector_queries(folder, kind, given.seconds, given.concurrency)
    if given.only in (None, "image"):
        image_queries(folder, given.seconds, given.concurrency)
    if given.only in (None, "milvus"):
        milvus_queries(folder, given.seconds)
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
