"""Measures one set of embeddings: retrieval with intervals, verification, neighbours, thresholds."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app.evaluate.models import Embedded
from models.bundle import usable_device
from models.errors import InputError
from models.metrics import (
    FewShot,
    PairHistogram,
    RetrievalResult,
    Threshold,
    all_pairs_metrics,
    calibrate,
    clustering_metrics,
    evaluate_retrieval,
    few_shot_accuracy,
    intervals,
    pair_histogram,
    sample_of_classes,
)
from models.metrics.retrieval import DEFAULT_BUDGET, EVERY_METRIC, Progress

CURVE_KS = (1, 2, 4, 8, 16, 32)
PAIR_ITEMS = 20_000  # 200 million pairs; more change no figure that can be read off a curve


@dataclass(frozen=True)
class Subject:
    """What is evaluated, besides the vectors.

    Attributes:
        labels: int64 (N,), positions in `class_names`.
        class_names: of the labels.
        queries: int64 rows that are queries, None where every row is one against all others.
        gallery: int64 rows of the gallery, None likewise.
        relevance: a set of labels for each row, where one in common is a match; None where equal labels are.
        columns: metadata, name to (N,) values, for slices.
    """

    labels: NDArray[np.int64]
    class_names: list[str]
    queries: NDArray[np.int64] | None = None
    gallery: NDArray[np.int64] | None = None
    relevance: list[frozenset[str]] | None = None
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """How it is evaluated; see `kindred evaluate`.

    `device` is where similarities are computed: the name of a torch device, or auto.
    """

    ks: tuple[int, ...] = (1, 2, 4, 8)
    max_queries: int | None = None
    memory_budget: int = DEFAULT_BUDGET
    rerank: bool = False
    clustering: bool = False
    few_shot: tuple[FewShot, ...] = ()
    seed: int = 0
    drop_duplicates: bool = False
    device: str = "auto"


@dataclass(frozen=True)
class Measured:
    """Everything known of one set of embeddings.

    Attributes:
        name: what tables call it.
        baseline: whether it only serves for comparison.
        about: plain JSON on its origin.
        vectors: float (N, dim).
        retrieval: figures of each query.
        query_rows: int64 (Q,) rows of the evaluated queries among the N.
        neighbours: int64 (Q, k) rows of their nearest neighbours.
        similarity: float32 (Q, k) cosine similarities.
        hits: bool (Q, k) whether they match.
        metrics: means, verification, clustering and few-shot figures, by name.
        intervals: 95% intervals by name: bootstrap over classes; of few-shot figures over episodes.
        pairs: histogram of pair similarities, None where pairs of one kind are missing.
        thresholds: calibrated operating points; empty unless asked for.
        reranked: retrieval figures after k-reciprocal re-ranking, empty unless asked for.
    """

    name: str
    baseline: bool
    about: dict[str, Any]
    vectors: NDArray[Any]
    retrieval: RetrievalResult
    query_rows: NDArray[np.int64]
    neighbours: NDArray[np.int64]
    similarity: NDArray[np.float32]
    hits: NDArray[np.bool_]
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    pairs: PairHistogram | None
    thresholds: list[Threshold]
    reranked: dict[str, float]


def measure(
    embedded: Embedded,
    subject: Subject,
    options: Options,
    *,
    calibrated: bool = False,
    progress: Progress | None = None,
) -> Measured:
    """Measures one set of embeddings.

    Raises:
        InputError: unusable vectors, or no query with a match.
    """
    if len(embedded.vectors) != len(subject.labels):
        raise InputError(
            f"{embedded.name}: {len(embedded.vectors)} embeddings for {len(subject.labels)} labels; "
            "the rows must correspond"
        )
    vectors = torch.from_numpy(np.require(embedded.vectors, np.float32, ["C", "W"]))
    vectors = vectors.to(usable_device(options.device))
    query_rows = np.arange(len(vectors)) if subject.queries is None else subject.queries
    gallery_rows = np.arange(len(vectors)) if subject.gallery is None else subject.gallery
    sides = _sides(vectors, subject)
    ks = tuple(sorted({*CURVE_KS, *options.ks}))
    lists = _NeighbourLists(len(query_rows), min(max(ks), len(gallery_rows) - (subject.gallery is None)))
    result = evaluate_retrieval(
        **sides,
        ks=ks,
        metrics=EVERY_METRIC,
        max_queries=options.max_queries,
        seed=options.seed,
        memory_budget=options.memory_budget,
        progress=progress,
        on_block=lists.add,
    )
    chosen = result.rows.numpy()
    metrics = result.means()
    pairs = _pairs(vectors, subject, options.seed)
    if pairs is not None:
        metrics |= all_pairs_metrics(pairs)
    if options.clustering:
        metrics |= clustering_metrics(vectors, subject.labels, seed=options.seed)
    spreads = intervals(
        result.values, torch.from_numpy(subject.labels[query_rows[chosen]]), seed=options.seed
    )
    for protocol in options.few_shot:
        groups = _groups(subject, protocol)
        found = few_shot_accuracy(vectors, subject.labels, protocol, groups, options.seed)
        metrics[protocol.name], spreads[protocol.name] = found
    reranked: dict[str, float] = {}
    if options.rerank and not embedded.baseline:
        again = evaluate_retrieval(
            **sides,
            ks=options.ks,
            metrics=EVERY_METRIC,
            max_queries=options.max_queries,
            rerank=True,
            seed=options.seed,
            memory_budget=options.memory_budget,
        )
        reranked = again.means()
    return Measured(
        name=embedded.name,
        baseline=embedded.baseline,
        about=embedded.about,
        vectors=embedded.vectors,
        retrieval=result,
        query_rows=query_rows[chosen],
        neighbours=gallery_rows[lists.index[chosen]],
        similarity=lists.similarity[chosen],
        hits=lists.hits[chosen],
        metrics=metrics,
        intervals=spreads,
        pairs=pairs,
        thresholds=calibrate(vectors, subject.labels, seed=options.seed) if calibrated and pairs else [],
        reranked=reranked,
    )


class _NeighbourLists:
    """Collects the first neighbours of every query, block by block."""

    def __init__(self, queries: int, depth: int) -> None:
        self.index = np.zeros((queries, depth), dtype=np.int64)
        self.similarity = np.zeros((queries, depth), dtype=np.float32)
        self.hits = np.zeros((queries, depth), dtype=bool)

    def add(self, block: Any) -> None:
        rows, depth = block.rows.cpu().numpy(), self.index.shape[1]
        self.index[rows] = block.index[:, :depth].cpu().numpy()
        self.similarity[rows] = block.similarity[:, :depth].cpu().numpy()
        self.hits[rows] = block.hits[:, :depth].cpu().numpy()


def _sides(vectors: torch.Tensor, subject: Subject) -> dict[str, Any]:
    """Queries and gallery as `evaluate_retrieval` takes them."""

    def labels(rows: NDArray[np.int64] | None) -> Any:
        if subject.relevance is not None:
            return [subject.relevance[row] for row in (range(len(vectors)) if rows is None else rows)]
        return subject.labels if rows is None else subject.labels[rows]

    if subject.queries is None or subject.gallery is None:
        return {"embeddings": vectors, "labels": labels(None)}
    return {
        "embeddings": vectors[torch.from_numpy(subject.queries)],
        "labels": labels(subject.queries),
        "gallery_embeddings": vectors[torch.from_numpy(subject.gallery)],
        "gallery_labels": labels(subject.gallery),
    }


def _groups(subject: Subject, protocol: FewShot) -> NDArray[Any] | None:
    if protocol.within is None:
        return None
    if protocol.within not in subject.columns:
        known = ", ".join(subject.columns) or "none"
        raise InputError(f"--within {protocol.within}: the data has no such column, only {known}")
    return subject.columns[protocol.within].astype(str)


def _pairs(vectors: torch.Tensor, subject: Subject, seed: int) -> PairHistogram | None:
    codes = torch.from_numpy(subject.labels)
    items = sample_of_classes(codes, PAIR_ITEMS, seed)
    histogram = pair_histogram(vectors[items.to(vectors.device)], codes[items])
    return histogram if histogram.same.any() and histogram.different.any() else None
