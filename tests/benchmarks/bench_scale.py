"""How memory, build time, recall and latency of each index type grow from 10k to 1M vectors.

    PYTHONPATH=. python tests/benchmarks/bench_scale.py --out docs/results/scale

Three steps, each of which can run alone (--steps) and for some sizes only (--sizes): `build` makes vectors
(`scale_vectors.py`), indexes and their recall, and keeps them in the cache folder; `measure` times searches
on one thread, alone on the machine; `report` writes curves.json and curves.png. Build times are seconds of
processor time, so that they hold on a machine that is shared.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from scale_report import report
from scale_vectors import DEPTH, Vectors, make

from models.cache_folder import cache_root
from serve.store.ann import flat
from serve.store.ann.approximate import FaissIndex, new_index

SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
TYPES = ("Flat", "SQ8", "HNSW32", "IVF,Flat", "IVF,SQ8", "OPQ32,IVF,PQ32")
PROBES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
VIEWS = (16, 32, 64, 128, 256, 512)
RESCORED = 4  # hits asked of compressed codes per hit wanted, as the store does
PQ_ROWS = 20_000  # training rows of rotation and product quantizer
QUERIES = 1000
TARGET = 0.95


def lists_for(items: int) -> int:
    """Lists of an inverted index: about 4 sqrt(N), and at least 39 vectors in each."""
    lists = 2 ** round(math.log2(4 * math.sqrt(items)))
    while 39 * lists > items:
        lists //= 2
    return lists


def factory_of(kind: str, items: int) -> str:
    return kind.replace("IVF", f"IVF{lists_for(items)}")


def kept(path: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The JSON in a file; made by `work` where it is missing."""
    if not path.is_file():
        path.write_text(json.dumps(work(), indent=1) + "\n")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def centroids(folder: Path, vectors: Vectors) -> tuple[Vectors, float]:
    """Centres of the lists, shared by all inverted indexes, and the seconds that finding them took."""
    path = folder / "centroids.npy"
    lists = lists_for(len(vectors))

    def train() -> dict[str, Any]:
        start = time.process_time()
        kmeans = faiss.Kmeans(vectors.shape[1], lists, niter=10, seed=1, max_points_per_centroid=39)
        kmeans.train(np.ascontiguousarray(vectors))
        np.save(path, kmeans.centroids)
        return {"seconds": time.process_time() - start}

    seconds = kept(folder / "centroids.json", train)["seconds"]
    return np.load(path), seconds


def build(folder: Path, kind: str, vectors: Vectors) -> dict[str, Any]:
    """Trains and fills one index and writes it to `folder`; without the vectors where it is a graph."""
    index = new_index(factory_of(kind, len(vectors)), vectors.shape[1])
    seconds = 0.0
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None:
        centres, seconds = centroids(folder, vectors)
    start = time.process_time()
    rows = np.linspace(0, len(vectors) - 1, min(len(vectors), PQ_ROWS)).astype(np.int64)
    sample = np.ascontiguousarray(vectors[rows])
    if isinstance(index, faiss.IndexPreTransform):
        rotation = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.niter, rotation.niter_pq_0 = 10, 10
        rotation.train(sample)
        centres = rotation.apply(centres)
    if inverted is not None:
        inverted.quantizer.add(centres)  # then training only finds the codes
    index.train(sample)
    for at in range(0, len(vectors), 8192):
        index.add(np.ascontiguousarray(vectors[at : at + 8192]))
    seconds += time.process_time() - start
    graph = isinstance(index, faiss.IndexHNSWFlat)
    path = folder / f"{kind}.faiss"
    faiss.write_index(index, str(path), faiss.IO_FLAG_SKIP_STORAGE if graph else 0)
    size = path.stat().st_size + (vectors.nbytes if graph else 0)
    return {"factory": factory_of(kind, len(vectors)), "build_cpu_s": seconds, "bytes": size}


class Searcher:
    """A built index that is searched alone ("codes") or as the store does ("rescored" by full vectors)."""

    def __init__(self, folder: Path, kind: str, vectors: Vectors) -> None:
        self.vectors, self.index = vectors, None
        if kind != "Flat":
            self.index = FaissIndex.load(folder / f"{kind}.faiss", kind, vectors)
            self.inverted = faiss.try_extract_index_ivf(self.index._index)
            self.graph = isinstance(self.index._index, faiss.IndexHNSWFlat)

    def efforts(self) -> tuple[int, ...]:
        """Values of the search's one parameter, cheapest first; (0,) where it has none."""
        if self.index is None or not (self.graph or self.inverted):
            return (0,)
        return VIEWS if self.graph else tuple(p for p in PROBES if p <= self.inverted.nlist)

    def ways(self) -> tuple[str, ...]:
        exact_codes = self.index is None or self.graph or "Flat" in self.index.factory
        return ("codes",) if exact_codes else ("codes", "rescored")

    def search(self, queries: Vectors, effort: int, way: str) -> Any:
        """Rows of the hits, int64 (Q, 10)."""
        if self.index is None:
            return flat.scan(queries, self.vectors, DEPTH)[1]
        if self.graph:
            options = faiss.SearchParametersHNSW(efSearch=effort)
            return self.index._search(queries, DEPTH, params=options)[1]
        if self.inverted:
            self.inverted.nprobe = effort
        if way == "codes":
            return self.index._search(queries, DEPTH)[1]
        return self.index.search(queries, DEPTH)[1]


def recalls(searcher: Searcher, queries: Vectors, truth: Any) -> Iterator[dict[str, Any]]:
    """Recall@10 at every effort, until nothing more is to be gained."""
    for way in searcher.ways():
        last = 0.0
        for effort in searcher.efforts():
            found = searcher.search(queries, effort, way)
            same = [len(np.intersect1d(x, y)) for x, y in zip(found, truth, strict=True)]
            recall = float(np.mean(same)) / DEPTH
            yield {"way": way, "effort": effort, "recall@10": recall}
            if recall > 0.995 or (recall > 0.5 and recall - last < 0.001):
                break
            last = recall


def chosen(tried: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of each way the cheapest effort that reaches the target, or the one that comes closest."""
    for way in dict.fromkeys(entry["way"] for entry in tried):
        mine = [entry for entry in tried if entry["way"] == way]
        enough = [entry for entry in mine if entry["recall@10"] >= TARGET]
        yield min(enough, key=lambda e: e["effort"]) if enough else max(mine, key=lambda e: e["recall@10"])


def measure(searcher: Searcher, queries: Vectors, effort: int, way: str, budget: float) -> dict[str, float]:
    """Latency of single queries and the rate in batches of 64, by the clock and in processor time."""
    for row in range(50):
        searcher.search(queries[row : row + 1], effort, way)
    wall: list[float] = []
    processor: list[float] = []
    while sum(processor) < budget and len(wall) < 4 * len(queries):
        row = len(wall) % len(queries)
        start, used = time.perf_counter(), time.thread_time()
        searcher.search(queries[row : row + 1], effort, way)
        processor.append(time.thread_time() - used)
        wall.append(time.perf_counter() - start)
    done, start, used = 0, time.perf_counter(), time.thread_time()
    while time.thread_time() - used < budget / 3:
        searcher.search(queries[done % 512 :][:64], effort, way)
        done += 64
    figures = {"timed": len(wall)}
    for clock, taken, batches in (
        ("wall", wall, time.perf_counter() - start),
        ("cpu", processor, time.thread_time() - used),
    ):
        figures[f"{clock}_p50_ms"] = 1000 * float(np.percentile(taken, 50))
        figures[f"{clock}_p99_ms"] = 1000 * float(np.percentile(taken, 99))
        figures[f"{clock}_batch_qps"] = done / batches
    return figures


def build_one(folder: Path, kind: str, data: tuple[Vectors, Vectors, Any], threads: int) -> None:
    """The index and its recall, where they are not there yet."""
    vectors, queries, truth = data
    flat.use_threads(threads)
    none = {"factory": kind, "build_cpu_s": 0.0, "bytes": vectors.nbytes}
    built = kept(
        folder / f"{kind}.built.json", lambda: none if kind == "Flat" else build(folder, kind, vectors)
    )
    searcher = Searcher(folder, kind, np.asarray(vectors))
    tried = kept(folder / f"{kind}.recall.json", lambda: {"tried": list(recalls(searcher, queries, truth))})
    print(built, tried["tried"][-1], flush=True)


def measure_one(folder: Path, kind: str, data: tuple[Vectors, Vectors, Any], budget: float) -> None:
    """Times what `build_one` chose; replaces an earlier measurement."""
    vectors, queries, _ = data
    if not (folder / f"{kind}.recall.json").is_file():
        print(len(vectors), kind, "is not built", flush=True)
        return
    flat.use_threads(1)
    searcher = Searcher(folder, kind, np.array(vectors))  # all of it in memory
    tried = json.loads((folder / f"{kind}.recall.json").read_text())["tried"]
    rows = [e | measure(searcher, queries, e["effort"], e["way"], budget) for e in chosen(tried)]
    (folder / f"{kind}.timed.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    print(len(vectors), kind, rows, flush=True)


def run(options: argparse.Namespace) -> None:
    faiss.cvar.distance_compute_blas_threshold = flat.BATCH * options.dim  # as the store's exact scan
    folders = {items: options.cache / f"{items}x{options.dim}-{options.seed}" for items in options.sizes}
    for items, folder in folders.items():
        if {"build", "measure"} & set(options.steps):
            data = make(folder, items, options.dim, QUERIES, options.seed)
        for kind in options.types:
            if "build" in options.steps:
                build_one(folder, kind, data, options.build_threads)
            if "measure" in options.steps:
                measure_one(folder, kind, data, options.budget)
    if "report" in options.steps:
        about = {
            "command": "PYTHONPATH=. python tests/benchmarks/bench_scale.py --out docs/results/scale",
            "dim": options.dim,
            "seed": options.seed,
            "target_recall@10": TARGET,
            "versions": {
                "faiss": faiss.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "cpu": _processor(),
            "threads": 1,
            "clock": options.clock,
        }
        report(folders, options.types, options.out, about)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results/scale"))
    parser.add_argument("--cache", type=Path, default=cache_root() / "bench_scale")
    parser.add_argument("--steps", nargs="+", default=["build", "measure", "report"])
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument(
        "--clock", default="wall", help="cpu: report processor time, where others share the machine"
    )
    parser.add_argument("--build-threads", type=int, default=1)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of timing a search")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
