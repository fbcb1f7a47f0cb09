"""Measure one set of embeddings: retrieval with intervals, verification, neighbours, thresholds."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app.evaluation.evaluated_models import EvaluatedModel
from app.evaluation.evaluation_set import EvaluationSet
from models.bundle import usable_device
from models.errors import InputError
from models.metrics import (
    FewShot,
    PairHistogram,
    all_pairs_metrics,
    calibrate,
    clustering_metrics,
    evaluate_retrieval,
    few_shot_accuracy,
    intervals,
    pair_histogram,
    sample_of_classes,
)
from models.metrics.exact_retrieval import DEFAULT_BUDGET, EVERY_METRIC, Progress

CURVE_KS = (1, 2, 4, 8, 16, 32)
PAIR_ITEMS = 20_000  # 200 million pairs; more do not change the curves visibly


@dataclass(frozen=True)
class Options:
    """Options of an evaluation, as in `kindred evaluate`; `memory_budget` is in bytes."""

    ks: tuple[int, ...] = (1, 2, 4, 8)
    max_queries: int | None = None
    memory_budget: int = DEFAULT_BUDGET
    rerank: bool = False
    clustering: bool = False
    few_shot: tuple[FewShot, ...] = ()
    seed: int = 0
    drop_duplicates: bool = False
    device: str = "auto"


def measure(
    model: EvaluatedModel,
    items: EvaluationSet,
    options: Options,
    *,
    calibrated: bool = False,
    progress: Progress | None = None,
) -> None:
    """Measure a model's embeddings; the results are stored in the model.

    Raises:
        InputError: the vectors are unusable, or no query has a match.
    """
    vectors = torch.from_numpy(np.require(model.vectors, np.float32, ["C", "W"]))
    vectors = vectors.to(usable_device(options.device))
    query_rows = np.arange(len(vectors)) if items.queries is None else items.queries
    gallery_rows = np.arange(len(vectors)) if items.gallery is None else items.gallery
    ks = tuple(sorted({*CURVE_KS, *options.ks}))
    lists = _NeighbourLists(len(query_rows), min(max(ks), len(gallery_rows) - (items.gallery is None)))
    retrieval = partial(
        evaluate_retrieval,
        **_sides(vectors, items),
        metrics=EVERY_METRIC,
        max_queries=options.max_queries,
        seed=options.seed,
        memory_budget=options.memory_budget,
    )
    model.retrieval = retrieval(ks=ks, progress=progress, on_block=lists.add)
    chosen = model.retrieval.rows.numpy()
    model.query_rows = query_rows[chosen]
    model.neighbours = gallery_rows[lists.neighbours[chosen]]
    model.similarity, model.hits = lists.similarity[chosen], lists.hits[chosen]
    model.metrics = model.retrieval.means()
    classes = torch.from_numpy(items.labels[model.query_rows])
    model.intervals = intervals(model.retrieval.values, classes, seed=options.seed)
    model.pairs = _pairs(vectors, items, options.seed)
    if model.pairs is not None:
        model.metrics |= all_pairs_metrics(model.pairs)
        if calibrated:
            model.thresholds = calibrate(vectors, items.labels, seed=options.seed)
    if options.clustering:
        model.metrics |= clustering_metrics(vectors, items.labels, seed=options.seed)
    for protocol in options.few_shot:
        found = few_shot_accuracy(vectors, items.labels, protocol, _groups(items, protocol), options.seed)
        model.metrics[protocol.name], model.intervals[protocol.name] = found
    if options.rerank and not model.baseline:
        model.reranked = retrieval(ks=options.ks, rerank=True).means()


class _NeighbourLists:
    """Collects the first neighbours of every query, block by block."""

    def __init__(self, queries: int, depth: int) -> None:
        self.neighbours = np.zeros((queries, depth), dtype=np.int64)
        self.similarity = np.zeros((queries, depth), dtype=np.float32)
        self.hits = np.zeros((queries, depth), dtype=bool)

    def add(self, block: Any) -> None:
        rows, depth = block.rows.cpu().numpy(), self.neighbours.shape[1]
        self.neighbours[rows] = block.index[:, :depth].cpu().numpy()
        self.similarity[rows] = block.similarity[:, :depth].cpu().numpy()
        self.hits[rows] = block.hits[:, :depth].cpu().numpy()


def _sides(vectors: torch.Tensor, items: EvaluationSet) -> dict[str, Any]:
    """The arguments of `evaluate_retrieval` for queries and gallery."""

    def labels(rows: NDArray[np.int64] | None) -> Any:
        if items.label_sets is not None:
            return [items.label_sets[row] for row in (range(len(vectors)) if rows is None else rows)]
        return items.labels if rows is None else items.labels[rows]

    if items.queries is None or items.gallery is None:
        return {"embeddings": vectors, "labels": labels(None)}
    return {
        "embeddings": vectors[torch.from_numpy(items.queries)],
        "labels": labels(items.queries),
        "gallery_embeddings": vectors[torch.from_numpy(items.gallery)],
        "gallery_labels": labels(items.gallery),
    }


def _groups(items: EvaluationSet, protocol: FewShot) -> NDArray[Any] | None:
    if protocol.within is None:
        return None
    if protocol.within not in items.columns:
        known = ", ".join(items.columns) or "none"
        raise InputError(f"--within {protocol.within}: the data has no such column, only {known}")
    return items.columns[protocol.within].astype(str)


def _pairs(vectors: torch.Tensor, items: EvaluationSet, seed: int) -> PairHistogram | None:
    codes = torch.from_numpy(items.labels)
    rows = sample_of_classes(codes, PAIR_ITEMS, seed)
    histogram = pair_histogram(vectors[rows.to(vectors.device)], codes[rows])
    return histogram if histogram.same.any() and histogram.different.any() else None
