"""Measure index types on vectors, and choose the fastest within limits of recall and memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
from rich.console import Console
from rich.progress import track
from rich.table import Table

from app.evaluation.index_recall import (
    IndexMetrics,
    Truth,
    Vectors,
    build,
    exact_neighbours,
    index_bytes,
    measure_search,
)
from models.errors import InputError

RESCORED = 10  # candidates for each neighbour that RFlat scores again with full vectors
TRAINING_POINTS = 39  # vectors for each cell that FAISS needs for k-means
PROBES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
EFFORTS = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Candidate:
    """An index type, its search parameter, and the values to try, fastest first."""

    factory: str
    parameter: str = ""
    values: tuple[int, ...] = ()


def tune_vectors(
    vectors: Vectors, recall: float, memory: int, *, queries: int = 1000, seed: int = 0
) -> tuple[list[IndexMetrics], IndexMetrics | None]:
    """Measure candidates on unit vectors (N, dim) and choose one by its recall@10 and bytes.

    Returns:
        All measurements, and the fastest for single queries within both limits, or None.

    Raises:
        InputError: a limit is out of range, or there are too few vectors.
    """
    if not 0 < recall <= 1:
        raise InputError(f"--recall {recall:g}: must be between 0 and 1")
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
    """Raise the search parameter until the recall is reached; higher values would only be slower."""
    # A lower bound, so that an index far over the limit is not built.
    if truth.vectors.size * (1 if "SQ8" in candidate.factory else 4) > memory:
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


def as_table(measured: list[IndexMetrics], chosen: IndexMetrics | None, recall: float, memory: int) -> Table:
    """The measurements as a table, the chosen index in bold."""
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
