"""Recall and speed of an approximate index, or of a store, against exact search on the same vectors."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from app.evaluation.evaluation import Evaluation
from models.errors import InputError
from models.metrics.inputs import as_unit_vectors
from serve.store.ann.approximate import new_index
from serve.store.collection import FaissStore
from serve.store.database import Tuning

QUERIES = 1000
DEPTH = 10
SINGLE_QUERIES = 200
BATCH = 64
BLAS_FROM = 20  # FAISS uses BLAS, 5 times as fast, only for batches over 128,000 / dim queries
SAME = 1e-6  # neighbours whose similarity is this close to the true k-th count as found

Vectors = NDArray[np.float32]
# From queries, float32 (n, dim), and k to rows of the gallery, int64 (n, k), -1 for none.
Search = Callable[[Vectors, int], NDArray[np.int64]]


@dataclass(frozen=True)
class IndexMetrics:
    """Measurements on one thread."""

    index: str  # factory string, or folder of a store
    parameters: str  # of the search, in FAISS's notation (nprobe=16); empty for the defaults
    recall_at_1: float  # fraction of queries whose true nearest neighbour is found first
    recall_at_10: float  # mean fraction of the true 10 nearest neighbours among the first 10 found
    single_qps: float  # queries per second, one at a time
    batch_qps: float  # queries per second in batches of 64
    bytes: int  # size of the index; 0 if unknown
    build_seconds: float  # to train and fill the index

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; recalls are named recall@1 and recall@10."""
        values = asdict(self)
        return {
            "recall@1": values.pop("recall_at_1"),
            "recall@10": values.pop("recall_at_10"),
            **values,
        }


@dataclass(frozen=True)
class Truth:
    """Queries, and the result of an exact search."""

    vectors: Vectors  # (N, dim), the gallery, of unit length
    rows: NDArray[np.int64]  # (Q,), of the queries; a query is not its own neighbour
    similarity: Vectors  # (Q, k), of the k nearest, descending


def exact_neighbours(vectors: Vectors, queries: int, seed: int) -> Truth:
    """Draw queries among the vectors and find their nearest neighbours exactly.

    Raises:
        InputError: fewer than two vectors.
    """
    if len(vectors) < 2:
        raise InputError("an index needs at least two vectors to be measured")
    rows = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:queries])
    gallery = torch.from_numpy(vectors)
    depth = min(DEPTH, len(vectors) - 1)
    nearest = []
    for chunk in torch.split(torch.from_numpy(rows), 256):
        similarity = gallery[chunk] @ gallery.T
        similarity.scatter_(1, chunk[:, None], -torch.inf)
        nearest.append(similarity.topk(depth, dim=1).values)
    return Truth(vectors, rows, torch.cat(nearest).numpy())


@contextmanager
def one_thread() -> Iterator[None]:
    """Search on one thread, batches with BLAS; FAISS's global settings are restored afterwards."""
    threads, blas = faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold
    faiss.omp_set_num_threads(1)
    faiss.cvar.distance_compute_blas_threshold = BLAS_FROM
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
        faiss.cvar.distance_compute_blas_threshold = blas


def build(factory: str, vectors: Vectors) -> tuple[Any, float]:
    """Train and fill an index for inner products; graphs as the store builds them, with efConstruction 100.

    Returns:
        The index, and the time in seconds.

    Raises:
        InputError: FAISS knows no such index, or there are too few vectors to train it.
    """
    start = time.perf_counter()
    try:
        index = new_index(factory, vectors.shape[1])
        if not index.is_trained:
            index.train(vectors)
        index.add(vectors)
    except RuntimeError as error:
        reason = str(error).rsplit(":", 1)[-1].strip()
        raise InputError(f"faiss cannot build {factory!r} for {vectors.shape} vectors ({reason})") from error
    return index, time.perf_counter() - start


def index_bytes(index: Any) -> int:
    """Size of an index when it is written to a file."""
    return int(faiss.serialize_index(index).nbytes)


def measure_search(search: Search, truth: Truth, **about: Any) -> IndexMetrics:
    """Measure recall and speed of a search; `about` has the other fields of `IndexMetrics`."""
    queries = truth.vectors[truth.rows]
    depth = truth.similarity.shape[1]
    with one_thread():
        found = _without_self(search(queries, depth + 1), truth.rows)
        batch_qps = _rate(lambda batch: search(batch, depth), queries, BATCH)
        single_qps = _rate(lambda batch: search(batch, depth), queries[:SINGLE_QUERIES], 1)
    similarity = np.einsum("qd,qkd->qk", queries, truth.vectors[np.maximum(found, 0)])
    similarity[found < 0] = -np.inf
    right = similarity >= truth.similarity[:, -1:] - SAME
    return IndexMetrics(
        recall_at_1=float((similarity[:, 0] >= truth.similarity[:, 0] - SAME).mean()),
        recall_at_10=float(right.mean()),
        single_qps=single_qps,
        batch_qps=batch_qps,
        **about,
    )


def _without_self(found: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Drop each query's own row, or the last neighbour if it was not found."""
    own = found == rows[:, None]
    own[~own.any(axis=1), -1] = True
    others: NDArray[np.int64] = found[~own].reshape(len(found), -1)
    return others


def _rate(search: Callable[[Vectors], Any], queries: Vectors, batch: int) -> float:
    search(queries[:batch])
    start = time.perf_counter()
    for at in range(0, len(queries), batch):
        search(queries[at : at + batch])
    return len(queries) / (time.perf_counter() - start)


def measure_index(index: str, evaluation: Evaluation) -> dict[str, Any]:
    """Metrics of a FAISS index, such as IVF256,SQ8, on the first model's vectors, or of a store on its own.

    Raises:
        InputError: `index` is neither a store nor a usable factory string.
    """
    if Path(index).is_dir():
        return measure_store(Path(index), evaluation.options.seed, evaluation.options.device)
    vectors: Vectors = as_unit_vectors(evaluation.models[0].vectors).numpy()
    built, seconds = build(index, vectors)
    truth = exact_neighbours(vectors, QUERIES, evaluation.options.seed)
    return measure_search(
        lambda queries, k: built.search(queries, k)[1],
        truth,
        index=index,
        parameters="",
        bytes=index_bytes(built),
        build_seconds=seconds,
    ).to_dict()


def measure_store(folder: Path, seed: int, device: str = "auto") -> dict[str, Any]:
    """Metrics of a store's own search against exact search of its vectors."""
    tuning = Tuning(device=device)
    with FaissStore.open(folder, create=False, read_only=True, tuning=tuning) as store:
        ids, vectors = store_vectors(store)
        place = {item: row for row, item in enumerate(ids)}

        def search(queries: Vectors, k: int) -> Any:
            result = store.search(queries, k, with_metadata=False)
            rows = np.full((len(queries), k), -1, dtype=np.int64)
            for line, hits in enumerate(result.hits):
                rows[line, : len(hits)] = [place[hit.id] for hit in hits]
            return rows

        truth = exact_neighbours(vectors, QUERIES, seed)
        found = measure_search(search, truth, index=str(folder), parameters="", bytes=0, build_seconds=0.0)
        return {**found.to_dict(), "bytes": store.stats().disk_bytes, "factory": store.stats().index}


def store_vectors(store: FaissStore) -> tuple[list[str | int], Vectors]:
    """All ids of a store and their vectors, float32 (N, dim)."""
    ids: list[str | int] = []
    vectors: list[Vectors] = []
    for item in store.scan(with_vectors=True):
        ids.append(item.id)
        vectors.append(np.asarray(item.vector, dtype=np.float32))
    if not vectors:
        raise InputError("the store is empty; fill it with kindred index")
    return ids, np.stack(vectors)
