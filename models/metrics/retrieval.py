"""Retrieval metrics over a whole set: exact, under a byte budget, the same on any number of processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import models.metrics.map_at_r as map_at_r
import models.metrics.mrr as mrr
import models.metrics.ndcg_at_k as ndcg_at_k
import models.metrics.precision_at_k as precision_at_k
import models.metrics.r_precision as r_precision
import models.metrics.recall_at_k as recall_at_k
from models.errors import InputError
from models.metrics.distributed import merge_slices, my_slice
from models.metrics.inputs import Labels, as_unit_vectors
from models.metrics.neighbours import NeighbourEngine, Ranking
from models.metrics.relevance import Relevance, relevance_of
from models.metrics.reranking import ReciprocalEngine

Metric = Literal["recall", "precision", "map@r", "r_precision", "mrr", "ndcg"]
DEFAULT_METRICS: tuple[Metric, ...] = ("recall", "map@r", "r_precision")
EVERY_METRIC: tuple[Metric, ...] = ("recall", "precision", "map@r", "r_precision", "mrr", "ndcg")
DEFAULT_BUDGET = 2**30

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RetrievalResult:
    """Metrics of every query.

    Attributes:
        rows: int64 (Q,) which queries were evaluated, ascending.
        values: metric name (`recall@1`, `map@r`, …) to float64 (Q,).
        tied: bool (Q,) queries whose neighbours depend on how ties are resolved.
        excluded: number of queries without any match in the gallery, left out.
    """

    rows: Tensor
    values: dict[str, Tensor]
    tied: Tensor
    excluded: int

    def means(self) -> dict[str, float]:
        """Metric name to mean over queries; `queries`, `excluded_queries` and `tied_queries` are counts."""
        return {
            **{name: float(values.mean()) for name, values in self.values.items()},
            "queries": float(len(self.rows)),
            "excluded_queries": float(self.excluded),
            "tied_queries": float(self.tied.sum()),
        }


def retrieval_metrics(
    embeddings: Any, labels: Labels, ks: Sequence[int] = (1, 2, 4, 8), **options: Any
) -> dict[str, float]:
    """Exact recall@k, MAP@R, R-precision and more, as plain floats.

    Args:
        embeddings: (N, dim) array or tensor; scaled to unit length here.
        labels: (N,) integers or strings, or one collection of labels for each item.
        ks: depths of the metrics that have one.
        **options: see `evaluate_retrieval`.

    Returns:
        `recall@1`, …, `map@r`, `r_precision`, and the counts `queries`, `excluded_queries`, `tied_queries`.

    Raises:
        InputError: unusable vectors, labels or options; the message says which.
    """
    return evaluate_retrieval(embeddings, labels, ks, **options).means()


@torch.no_grad()
def evaluate_retrieval(
    embeddings: Any,
    labels: Labels,
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    gallery_embeddings: Any = None,
    gallery_labels: Labels | None = None,
    metrics: Sequence[Metric] = DEFAULT_METRICS,
    max_queries: int | None = None,
    rerank: bool = False,
    seed: int = 0,
    memory_budget: int = DEFAULT_BUDGET,
    distributed: bool = False,
    progress: Progress | None = None,
    on_block: Callable[[Ranking], None] | None = None,
) -> RetrievalResult:
    """Exact retrieval metrics of every query.

    Every item is a query against all others; with a gallery, against the gallery. Similarity is cosine. Ties
    are resolved against the model; queries without a match in the gallery are left out and counted.

    Args:
        embeddings: (N, dim) array or tensor of queries; the computation runs on its device.
        labels: (N,) integers or strings, or one collection of labels for each item (then one label in common
            makes a match).
        ks: depths of recall, precision and nDCG.
        gallery_embeddings: (M, dim) where the gallery is another set.
        gallery_labels: (M,) its labels.
        metrics: which to compute.
        max_queries: evaluate a random sample of that many queries (of those with a match), against the full
            gallery; the result is an estimate, so quote its interval (`models.metrics.bootstrap`).
        rerank: rank by k-reciprocal neighbours instead of the plain similarity (`models.metrics.reranking`).
        seed: of that sample.
        memory_budget: bytes of working memory, besides the vectors as fp32 at unit length.
        distributed: share the queries among the ranks of torch.distributed's default group; every rank passes
            the same arguments and gets the same result.
        progress: called with (queries done, queries in all) on this rank.
        on_block: called with each block's ranking, at least max(ks) deep as far as the gallery goes, for
            callers that want the neighbours themselves.

    Raises:
        InputError: unusable vectors, labels or options; the message says which.
    """
    _check_options(ks, metrics, max_queries)
    if (gallery_embeddings is None) != (gallery_labels is None):
        raise InputError("gallery_embeddings and gallery_labels go together; give both or neither")
    queries = as_unit_vectors(embeddings)
    apart = gallery_embeddings is not None
    gallery = (
        as_unit_vectors(gallery_embeddings, "gallery_embeddings").to(queries.device) if apart else queries
    )
    itself = None if apart else torch.arange(len(queries), device=queries.device)
    relevance = relevance_of(
        labels, gallery_labels, (len(queries), len(gallery)), self_index=itself, device=queries.device
    )
    rows = relevance.counts.nonzero().flatten()
    excluded = len(queries) - len(rows)
    if not len(rows):
        raise InputError(
            "no query has a match in the gallery: every class has a single item; add images to classes"
        )
    if max_queries is not None and max_queries < len(rows):
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:max_queries]
        rows = rows[chosen.to(rows.device)].sort().values
    kind = ReciprocalEngine if rerank else NeighbourEngine
    engine = kind(queries, gallery, relevance, self_index=itself, memory_budget=memory_budget)
    depths = relevance.counts[rows] if {"map@r", "r_precision"} & set(metrics) else torch.zeros_like(rows)
    depths = depths.clamp(min=max(ks, default=1))

    mine = my_slice(len(rows), depths) if distributed else torch.arange(len(rows), device=rows.device)
    place = torch.zeros(len(queries), dtype=torch.int64, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)
    names = _names(ks, metrics)
    values = torch.zeros(len(names) + 1, len(rows), dtype=torch.float64, device=rows.device)
    done = 0
    for block in engine.rank(rows[mine], depths[mine]):
        values[:, place[block.rows]] = _block_values(block, engine, relevance, ks, metrics)
        if on_block is not None:
            on_block(block)
        done += len(block.rows)
        if progress is not None:
            progress(done, len(mine))
    if distributed:
        merge_slices(values)
    values = values.cpu()
    return RetrievalResult(rows.cpu(), dict(zip(names, values, strict=False)), values[-1].bool(), excluded)


def _block_values(
    block: Ranking,
    engine: NeighbourEngine,
    relevance: Relevance,
    ks: Sequence[int],
    metrics: Sequence[Metric],
) -> Tensor:
    """Float64 (metrics + 1, B) in the order of `_names`; the last line flags ties."""
    relevant = relevance.counts[block.rows]
    lines: list[Tensor] = []
    for metric in metrics:
        if metric == "recall":
            lines += [recall_at_k.compute(block.hits, k) for k in ks]
        elif metric == "precision":
            lines += [precision_at_k.compute(block.hits, k) for k in ks]
        elif metric == "ndcg":
            lines += [ndcg_at_k.compute(block.hits, relevant, k) for k in ks]
        elif metric == "map@r":
            lines.append(map_at_r.compute(block.hits, relevant))
        elif metric == "r_precision":
            lines.append(r_precision.compute(block.hits, relevant))
        else:
            lines.append(mrr.compute(_first_match(block, engine)))
    return torch.stack([*lines, block.tied.double()])


def _first_match(block: Ranking, engine: NeighbourEngine) -> Tensor:
    """Rank of the first match; beyond the block's depth the whole gallery is counted."""
    first = block.hits.int().argmax(dim=1) + 1
    missing = ~block.hits.any(dim=1)
    if bool(missing.any()):
        first[missing] = engine.first_match_rank(block.rows[missing])
    return first


def _names(ks: Sequence[int], metrics: Sequence[Metric]) -> list[str]:
    with_depth = {"recall", "precision", "ndcg"}
    return [
        name
        for metric in metrics
        for name in ([f"{metric}@{k}" for k in ks] if metric in with_depth else [metric])
    ]


def _check_options(ks: Sequence[int], metrics: Sequence[Metric], max_queries: int | None) -> None:
    if any(k < 1 for k in ks):
        raise InputError(f"ks must be positive, not {list(ks)}")
    unknown = set(metrics) - set(EVERY_METRIC)
    if unknown or not metrics:
        raise InputError(f"metrics must be among {', '.join(EVERY_METRIC)}, not {sorted(unknown) or 'empty'}")
    if max_queries is not None and max_queries < 1:
        raise InputError(f"max_queries must be positive, not {max_queries}")
