"""The embedded store beside Qdrant Edge, LanceDB and Chroma: search, filter, upsert, import, memory, disk.

    pip install 'kindred[cpu,bench]'
    PYTHONPATH=. python tests/benchmarks/bench_store_peers.py --items 100000 \
        --out docs/results/bench_store_peers/100k.json
    PYTHONPATH=. python tests/benchmarks/bench_store_peers.py --items 1000000 \
        --out docs/results/bench_store_peers/1m.json

All get the same unit vectors of 128 numbers, drawn around 5,000 centres, each with a label and a field of
which one value is 1% of the rows; queries are further draws. Every store is built, and then opened, in a
process of its own on as many cores as --threads says. Each runs with its own defaults and with the bulk
import and the index that its documentation recommends (bench_store_engines.py). How far searches of its
graph look is tuned: of all settings that reach recall@10 of 0.99 (0.999) on the queries, the quickest
counts, and where none does, that of the highest recall; the recall stands behind each time. A search
returns ids, similarities, labels and fields.

What is timed is a call of the library in its process. For each kind of call the stores take turns, --rounds
times, and the median of the rounds' medians counts. "1% new to the store" are the first searches under each
of 100 filters. An upsert is of one new row into the full store: "acknowledged" is until the call returns,
"on disk" until the row would survive a loss of power. strace shows what they do. FaissStore and Chroma call
fsync before they return. Qdrant Edge has the row in a mapped log, which survives the death of the process,
and calls msync and fsync when it is told to flush. LanceDB renames files into place and never syncs them,
so it has no figure on disk.

A peer that is not installed is left out with a line. Memory is VmHWM, mapped files included.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from bench_store import clustered
from bench_store_engines import BUCKETS, DIM, ENGINES, Effort, K
from rich.console import Console
from rich.table import Table

CENTRES = 5000
SPREAD = 0.6  # a cluster's width against the distance of its centre from the origin
PEERS = {"qdrant-edge": "qdrant-edge-py", "lancedb": "lancedb", "chroma": "chromadb"}
TARGETS = (0.99, 0.999)
Ids = list[list[int]]


class Process:
    """A store in a process of its own: built, then opened."""

    def __init__(self, name: str, folder: Path, threads: int, items: int) -> None:
        self.name = name
        self.script = str(Path(__file__).with_name("bench_store_engines.py"))
        self.arguments = [name, str(folder), str(threads), str(items)]
        # LanceDB would keep cores back for reading.
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads), "LANCE_CPU_THREADS": str(threads)}
        self.process = self._start("build")
        self.figures = self._answer()
        self.close()
        self.open()

    def open(self) -> None:
        self.process = self._start("serve")
        ready = self._answer()
        self.efforts, self.scans, self.syncs = ready["efforts"], ready["scans"], ready["syncs"]
        self.figures["ready_s"] = ready["ready_s"]

    def close(self) -> None:
        self.process.communicate()

    def _start(self, role: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, self.script, role, *self.arguments],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise SystemExit(f"The process of {self.name} ended; its message stands above")
        return dict(json.loads(line))

    def ask(self, **question: Any) -> tuple[float, Ids]:
        """Median milliseconds of a call, and the ids that each search found."""
        assert self.process.stdin
        print(json.dumps(question), file=self.process.stdin, flush=True)
        answer = self._answer()
        self.figures["serve_peak_bytes"] = answer["serve_peak_bytes"]
        return statistics.median(answer["ms"]), answer["ids"]

    def search(self, effort: Effort, count: int, filtered: bool = False) -> tuple[float, Ids]:
        return self.ask(first=0, count=count, effort=effort, filtered=filtered)


def draw(folder: Path, items: int, queries: int) -> dict[bool, Ids]:
    """Writes vectors, buckets and queries; returns the true neighbours, by whether there is a filter."""
    centres = np.random.default_rng(0).standard_normal((CENTRES, DIM), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rng = np.random.default_rng(1)
    vectors = np.concatenate(
        [clustered(rng, centres, min(50_000, items - n), SPREAD) for n in range(0, items, 50_000)]
    )
    buckets = rng.permutation(items) % BUCKETS
    asked = clustered(np.random.default_rng(2), centres, queries, SPREAD)
    vectors.tofile(folder / "vectors.f32")
    buckets.tofile(folder / "buckets.i64")
    np.save(folder / "queries.npy", asked)
    every = faiss.knn(asked, vectors, K, faiss.METRIC_INNER_PRODUCT)[1]
    passing = []
    for number, query in enumerate(asked[:BUCKETS]):
        rows = np.flatnonzero(buckets == number % BUCKETS)
        passing.append(rows[faiss.knn(query[None], vectors[rows], K, faiss.METRIC_INNER_PRODUCT)[1][0]])
    return {False: every.tolist(), True: np.stack(passing).tolist()}


def recall(found: Ids, truth: Ids) -> float:
    """The part of the true neighbours that was found."""
    same = sum(len(set(a) & set(b)) for a, b in zip(found, truth, strict=False))
    return same / (K * len(found))


def trials(store: Process, truth: Ids, filtered: bool) -> list[dict[str, Any]]:
    """Recall and time with every effort; behind a filter also of the scan, which is a choice there."""
    tried = []
    for effort in [*store.efforts, *([None] if filtered and store.scans else [])]:
        milliseconds, found = store.search(effort, len(truth), filtered)
        tried.append({"effort": effort, "recall": recall(found, truth), "ms": milliseconds})
    return tried


def quickest(tried: list[dict[str, Any]], target: float) -> dict[str, Any]:
    """Of those that reach the target; where none does, that of the highest recall."""
    good = [one for one in tried if one["recall"] >= target]
    best = min(good, key=lambda one: one["ms"]) if good else max(tried, key=lambda one: one["recall"])
    return {"effort": best["effort"], "recall": best["recall"]}


def take_turns(stores: list[Process], kind: str, rounds: int, count: int, **question: Any) -> None:
    """Adds to the figures of each store the median of so many rounds' medians for this kind of call."""
    taken: dict[str, list[float]] = {store.name: [] for store in stores}
    for number in range(rounds):
        for store in stores:
            if "write" in question:
                asked = {"first": question["first"] + number * count, "write": question["write"]}
            else:
                effort = store.figures[kind]["effort"]
                asked = {"first": 0, "effort": effort, "filtered": question["filtered"]}
            taken[store.name].append(store.ask(count=count, **asked)[0])
    for store in stores:
        store.figures[kind] = store.figures.get(kind, {}) | {"ms": statistics.median(taken[store.name])}


def measure(stores: list[Process], truth: dict[bool, Ids], rounds: int, count: int) -> None:
    """All figures of stores that are open."""
    for store in stores:
        tried = trials(store, truth[False], filtered=False)
        store.figures |= {f"search_{target}": quickest(tried, target) for target in TARGETS}
        chosen = store.figures[f"search_{TARGETS[0]}"]["effort"]
        store.figures["filter_new"] = {"ms": store.search(chosen, BUCKETS, True)[0]}
        store.figures["filter"] = quickest(trials(store, truth[True], filtered=True), TARGETS[0])
        store.close()  # its memory is to be that of the chosen efforts
        store.open()
    scanning = [store for store in stores if store.scans]
    for store in scanning:
        found = store.search(None, len(truth[True]))[1]
        store.figures["exact"] = {"effort": None, "recall": recall(found, truth[False])}
    take_turns(scanning, "exact", rounds, count=count // 4, filtered=False)
    for target in TARGETS:
        take_turns(stores, f"search_{target}", rounds, count=count, filtered=False)
    take_turns(stores, "filter", rounds, count=min(count, BUCKETS), filtered=True)
    writes = count // 8
    take_turns(stores, "write_ack", rounds, count=writes, first=0, write="ack")
    syncing = [store for store in stores if store.syncs]
    take_turns(syncing, "write_disk", rounds, count=writes, first=rounds * writes, write="disk")


ROWS = {
    "exact": "exact search, ms",
    "search_0.99": "approximate search, recall 0.99, ms",
    "search_0.999": "approximate search, recall 0.999, ms",
    "filter": "filter of 1%, ms",
    "filter_new": "1% new to the store, ms",
    "write_ack": "upsert of one, acknowledged, ms",
    "write_disk": "upsert of one, on disk, ms",
    "import_per_second": "import, vectors/s",
    "index_s": "index after the import, s",
    "ready_s": "opened until the first answer, s",
    "empty_bytes": "memory before the first row, MiB",
    "build_peak_bytes": "peak memory of the build, MiB",
    "serve_peak_bytes": "peak memory of searches and upserts, MiB",
    "disk_bytes": "disk, MiB",
}


def shown(value: Any, name: str) -> str:
    """One cell of the table."""
    if value is None:
        return "–"
    if isinstance(value, dict):
        effort = "" if value.get("effort") is None else f", effort {value['effort']}"
        return f"{value['ms']:.3g}" + (f" ({value['recall']:.4f}{effort})" if "recall" in value else "")
    if name.endswith("_bytes"):
        value /= 2**20
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(results: dict[str, dict[str, Any]], title: str) -> Table:
    """A column for each store; the recall of a search stands behind its time."""
    made = Table(title=title)
    for head in ["", *results]:
        made.add_column(head, justify="right" if head else "left")
    for name, words in ROWS.items():
        made.add_row(words, *(shown(figures.get(name), name) for figures in results.values()))
    return made


def processor() -> str:
    """The CPU's name, where Linux says it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def versions(names: list[str]) -> dict[str, str]:
    """Of those stores that are installed."""
    found = {"kindred": f"faiss {faiss.__version__}"} if "kindred" in names else {}
    for name in names:
        if name in PEERS:
            try:
                found[name] = f"{PEERS[name]} {importlib.metadata.version(PEERS[name])}"
            except importlib.metadata.PackageNotFoundError:
                print(f"{name} is left out: install {PEERS[name]}, or all with pip install 'kindred[bench]'")
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--queries", type=int, default=400, help="at least 100")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--folder", type=Path, help="a disk to build on; default: a temporary folder")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    installed = versions(options.only)
    report: dict[str, Any] = {
        "command": " ".join(["python", "tests/benchmarks/bench_store_peers.py", *sys.argv[1:]]),
        "items": options.items,
        "dim": DIM,
        "k": K,
        "versions": installed,
        "cpu": processor(),
    }
    for threads in options.threads:
        with tempfile.TemporaryDirectory(prefix="store-peers-", dir=options.folder) as name:
            truth = draw(Path(name), options.items, options.queries)
            stores = []
            for store in installed:
                stores.append(Process(store, Path(name), threads, options.items))
                print(f"{store} is built: {stores[-1].figures}", flush=True)
            measure(stores, truth, options.rounds, options.queries)
            for one in stores:
                one.close()
        results = {store.name: store.figures for store in stores}
        report[f"threads_{threads}"] = results
        title = f"{options.items:,} × {DIM}, {threads} thread{'s' * (threads > 1)}, {processor()}"
        Console(width=180).print(table(results, title))
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(" ".join(installed.values()))


if __name__ == "__main__":
    main()
