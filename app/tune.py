"""``kindred index tune``: picks the index type and its parameters on your own vectors."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
from rich.console import Console
from rich.progress import track
from rich.table import Table

from app.evaluation.embedding_files import load_embeddings
from app.evaluation.index_recall import (
    IndexMetrics,
    Truth,
    Vectors,
    build,
    exact_neighbours,
    index_bytes,
    measure_search,
    store_vectors,
)
from app.memory import parse_size
from models.errors import InputError
from models.metrics.inputs import as_unit_vectors
from serve.store.faiss_store import FaissStore

RESCORED = 10  # candidates a neighbour that RFlat scores again by full vectors
TRAINING_POINTS = 39  # vectors a cell that faiss wants for k-means
PROBES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
EFFORTS = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Candidate:
    """An index type and the values of its one search parameter to try, cheapest first."""

    factory: str
    parameter: str = ""
    values: tuple[int, ...] = ()


def tune(
    *,
    embeddings: Path | None = None,
    store: Path | None = None,
    collection: str = "default",
    recall: float = 0.99,
    memory: str = "2GB",
    queries: int = 1000,
    out: Path | None = None,
    seed: int = 0,
) -> None:
    """Pick the fastest index that reaches a recall within a memory limit, measured on your own vectors.

    Args:
        embeddings: A file of vectors: .npy, .npz or .parquet.
        store: Or the folder of a store, whose vectors are used.
        collection: Collection of that store.
        recall: Share of the true 10 nearest neighbours that must be found, in (0, 1].
        memory: Limit of the index, for example 512MB or 2GB.
        queries: Number of vectors to search for.
        out: JSON file for all figures.
        seed: Of the choice of queries.
    """
    limit = parse_size(memory)
    vectors = _vectors(embeddings, store, collection)
    measured, chosen = tune_vectors(vectors, recall, limit, queries=queries, seed=seed)
    console = Console()
    console.print(_table(measured, chosen, recall, limit))
    if out is not None:
        results = {
            "measured": [entry.to_dict() for entry in measured],
            "chosen": chosen.to_dict() if chosen else None,
        }
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if chosen is None:
        raise InputError(
            f"no index reaches recall {recall:g} within {memory}; allow more memory or less recall"
        )
    console.print(
        f"choose --index-type {chosen.index}" + (f" with {chosen.parameters}" if chosen.parameters else "")
    )


def tune_vectors(
    vectors: Vectors, recall: float, memory: int, *, queries: int = 1000, seed: int = 0
) -> tuple[list[IndexMetrics], IndexMetrics | None]:
    """Measures candidates and picks one.

    Args:
        vectors: float32 (N, dim) unit vectors.
        recall: least recall@10.
        memory: largest index in bytes.
        queries: number of rows to search for.
        seed: of their choice.

    Returns:
        All figures, and the fastest (single queries) within both limits, or None.

    Raises:
        InputError: limits that mean nothing, or too few vectors.
    """
    if not 0 < recall <= 1:
        raise InputError(f"recall lies between 0 and 1, not {recall:g}")
    truth = exact_neighbours(vectors, queries, seed)
    measured: list[IndexMetrics] = []
    every = list(candidates(*vectors.shape))
    for candidate in track(every, "measuring index types", console=Console(stderr=True), transient=True):
        measured += _measure(candidate, truth, recall, memory)
    fitting = [entry for entry in measured if entry.recall_at_10 >= recall and entry.bytes <= memory]
    return measured, max(fitting, key=lambda entry: entry.single_qps, default=None)


def candidates(size: int, dim: int) -> Iterator[Candidate]:
    """Index types worth trying for `size` vectors of dimension `dim`."""
    yield Candidate("Flat")
    yield Candidate("SQ8")
    yield Candidate("HNSW32", "efSearch", EFFORTS)
    cells = 2 ** round(math.log2(max(1.0, 4 * math.sqrt(size))))
    while cells * TRAINING_POINTS > size and cells > 1:
        cells //= 2
    if cells < 8:
        return
    probes = tuple(n for n in PROBES if n <= cells)
    yield Candidate(f"IVF{cells},Flat", "nprobe", probes)
    yield Candidate(f"IVF{cells},SQ8", "nprobe", probes)
    if dim % 4 == 0 and size >= 256 * TRAINING_POINTS:
        yield Candidate(f"IVF{cells},PQ{dim // 4}x4fs,RFlat", "nprobe", probes)


def _measure(candidate: Candidate, truth: Truth, recall: float, memory: int) -> Iterator[IndexMetrics]:
    """Raises the search's effort until the recall is reached: more would only be slower."""
    if _least_bytes(candidate.factory, truth.vectors) > memory:
        return
    index, seconds = build(candidate.factory, truth.vectors)
    size = index_bytes(index)
    space = faiss.ParameterSpace()
    for value in candidate.values or (0,):
        settings = {candidate.parameter: value} if candidate.parameter else {}
        if candidate.factory.endswith("RFlat"):
            settings["k_factor_rf"] = RESCORED
        for name, setting in settings.items():
            space.set_index_parameter(index, name, setting)
        found = measure_search(
            lambda queries, k: index.search(queries, k)[1],
            truth,
            index=candidate.factory,
            parameters=",".join(f"{name}={setting}" for name, setting in settings.items()),
            bytes=size,
            build_seconds=seconds,
        )
        yield found
        if found.recall_at_10 >= recall:
            return


def _least_bytes(factory: str, vectors: Vectors) -> int:
    """Lower bound of an index's size, so that one far over the limit is not built."""
    return int(vectors.size) * (1 if "SQ8" in factory else 4)


def _vectors(embeddings: Path | None, store: Path | None, collection: str) -> Vectors:
    if (embeddings is None) == (store is None):
        raise InputError("give either --embeddings FILE or --store FOLDER")
    if embeddings is not None:
        found: Vectors = as_unit_vectors(load_embeddings(embeddings).vectors).numpy()
        return found
    with FaissStore.open(str(store), collection=collection, create=False, read_only=True) as opened:
        return store_vectors(opened)[1]


def _table(measured: list[IndexMetrics], chosen: IndexMetrics | None, recall: float, memory: int) -> Table:
    table = Table(title=f"recall@10 ≥ {recall:g} within {memory / 2**20:.0f} MiB; one thread")
    columns = ("index", "parameters", "recall@1", "recall@10", "QPS single", "QPS batch 64", "MiB", "build s")
    for column in columns:
        table.add_column(column, justify="left" if column in ("index", "parameters") else "right")
    for entry in measured:
        cells: list[Any] = [
            entry.index,
            entry.parameters,
            f"{entry.recall_at_1:.3f}",
            f"{entry.recall_at_10:.3f}",
            f"{entry.single_qps:,.0f}",
            f"{entry.batch_qps:,.0f}",
            f"{entry.bytes / 2**20:.1f}",
            f"{entry.build_seconds:.1f}",
        ]
        table.add_row(*cells, style="bold green" if entry is chosen else None)
    return table
