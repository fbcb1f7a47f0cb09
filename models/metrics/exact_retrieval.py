"""Retrieval metrics over a whole set: exact, within a memory budget, the same on any number of processes.

The metrics take `hits`, bool (queries, ranks), best neighbour first, and return float64 (queries,).
`relevant`, int64 (queries,), is R of each query: the number of matching gallery items, at least 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch import distributed as dist

from models.errors import InputError
from models.metrics.inputs import Labels, Relevance, as_unit_vectors, relevance_of
from models.metrics.neighbours import NeighbourEngine, Ranking
from models.metrics.reranking import ReciprocalEngine

Metric = Literal["recall", "precision", "map@r", "r_precision", "mrr", "ndcg"]
DEFAULT_METRICS: tuple[Metric, ...] = ("recall", "map@r", "r_precision")
EVERY_METRIC: tuple[Metric, ...] = get_args(Metric)
WITH_DEPTH = ("recall", "precision", "ndcg")
DEFAULT_BUDGET = 2**30

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RetrievalResult:
    """Metrics of every query.

    Attributes:
        rows: int64 (Q,), the evaluated queries, ascending.
        values: metric name (`recall@1`, `map@r`, …) to float64 (Q,).
        tied: bool (Q,), queries whose neighbours depend on how ties are resolved.
        excluded: number of queries that were left out because nothing in the gallery matches.
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


def recall_at_k(hits: Tensor, k: int) -> Tensor:
    """1 where any of the first k neighbours matches (also: Hit@k); ranks past the gallery's end are misses.

    With `hits` [[0, 0, 1]]: recall@2 is 0, recall@3 is 1.
    """
    return hits[:, :k].any(dim=1).double()


def precision_at_k(hits: Tensor, k: int) -> Tensor:
    """Matches among the first k neighbours, divided by k even in a smaller gallery, as in torchmetrics."""
    return hits[:, :k].sum(dim=1).double() / k


def r_precision(hits: Tensor, relevant: Tensor) -> Tensor:
    """Matches among the first R neighbours, divided by R.

    With `hits` [[1, 0, 1, 1]], which must have at least R ranks, and R = 3 it is 2/3.
    """
    return _first_r(hits, relevant).sum(dim=1).double() / relevant


def map_at_r(hits: Tensor, relevant: Tensor) -> Tensor:
    """MAP@R (Musgrave et al., "A Metric Learning Reality Check", 2020).

    The sum over ranks i <= R of (precision@i where rank i matches), divided by R. With `hits` [[1, 0, 1, 1]],
    which must have at least R ranks, and R = 3 it is (1/1 + 2/3) / 3 = 5/9. Unlike R-precision it rewards
    early matches; unlike recall@1 it counts all of them.
    """
    counted = _first_r(hits, relevant).double()
    precision = counted.cumsum(dim=1) / (torch.arange(hits.shape[1], device=hits.device) + 1)
    return (precision * counted).sum(dim=1) / relevant


def ndcg_at_k(hits: Tensor, relevant: Tensor, k: int) -> Tensor:
    """DCG of the first k neighbours, divided by that of a perfect ranking, with binary relevance.

    DCG is the sum of 1 / log2(rank + 1) over matches. With `hits` [[0, 1]], R = 1 and k = 2 it is
    1 / log2(3) = 0.63.
    """
    discount = torch.log2(torch.arange(2, k + 2, device=hits.device, dtype=torch.float64)).reciprocal()
    ideal = discount.cumsum(dim=0)[relevant.clamp(max=k) - 1]
    ranks = hits[:, :k]
    return (ranks * discount[: ranks.shape[1]]).sum(dim=1) / ideal


def _first_r(hits: Tensor, relevant: Tensor) -> Tensor:
    return hits & (torch.arange(hits.shape[1], device=hits.device) < relevant[:, None])


def retrieval_metrics(
    embeddings: Any, labels: Labels, ks: Sequence[int] = (1, 2, 4, 8), **options: Any
) -> dict[str, float]:
    """Exact recall@k, MAP@R, R-precision and more, as plain floats.

    Args:
        embeddings: (N, dim) array or tensor; normalized to unit length here.
        labels: (N,) integers or strings, or one collection of labels for each item.
        ks: depths of recall, precision and nDCG.
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

    Every item is a query against all others, or against the gallery where one is given. Similarity is cosine.
    Ties are resolved against the model; queries without a match in the gallery are excluded and counted.

    Args:
        embeddings: (N, dim) array or tensor of queries; the computation runs on its device.
        labels: (N,) integers or strings, or one collection of labels for each item (then one label in common
            makes a match).
        ks: depths of recall, precision and nDCG.
        gallery_embeddings: (M, dim), where the gallery is a separate set.
        gallery_labels: (M,), its labels.
        metrics: metrics to compute.
        max_queries: evaluate a random sample of so many queries with a match, against the full gallery; the
            result is an estimate, so report its interval (`models.metrics.bootstrap`).
        rerank: rank by k-reciprocal neighbours instead of the plain similarity (`models.metrics.reranking`).
        seed: of that sample.
        memory_budget: bytes of working memory, besides the normalized fp32 vectors.
        distributed: divide the queries among the ranks of torch.distributed's default group; every rank
            passes the same arguments and gets the same result.
        progress: called with (queries done, queries in all) on this rank.
        on_block: called with each block's ranking, at least max(ks) deep where the gallery is so large, for
            callers that need the neighbours.

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

    mine = _slice_of_this_rank(depths) if distributed else torch.arange(len(rows), device=rows.device)
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
    if distributed and dist.is_initialized():
        dist.all_reduce(values)  # zero outside each rank's own slice, and x + 0 = x: exact
    values = values.cpu()
    return RetrievalResult(rows.cpu(), dict(zip(names, values, strict=False)), values[-1].bool(), excluded)


def _slice_of_this_rank(depths: Tensor) -> Tensor:
    """Positions of this rank's queries: disjoint, complete, not padded, and balanced in depth."""
    if not dist.is_initialized():
        return torch.arange(len(depths), device=depths.device)
    order = torch.argsort(depths, descending=True, stable=True)
    return order[dist.get_rank() :: dist.get_world_size()]


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
            lines += [recall_at_k(block.hits, k) for k in ks]
        elif metric == "precision":
            lines += [precision_at_k(block.hits, k) for k in ks]
        elif metric == "ndcg":
            lines += [ndcg_at_k(block.hits, relevant, k) for k in ks]
        elif metric == "map@r":
            lines.append(map_at_r(block.hits, relevant))
        elif metric == "r_precision":
            lines.append(r_precision(block.hits, relevant))
        else:
            lines.append(_first_match(block, engine).double().reciprocal())
    return torch.stack([*lines, block.tied.double()])


def _first_match(block: Ranking, engine: NeighbourEngine) -> Tensor:
    """Rank of the first match; where it is beyond the block's depth, the whole gallery is ranked."""
    first = block.hits.int().argmax(dim=1) + 1
    missing = ~block.hits.any(dim=1)
    if bool(missing.any()):
        first[missing] = engine.first_match_rank(block.rows[missing])
    return first


def _names(ks: Sequence[int], metrics: Sequence[Metric]) -> list[str]:
    return [
        name
        for metric in metrics
        for name in ([f"{metric}@{k}" for k in ks] if metric in WITH_DEPTH else [metric])
    ]


def _check_options(ks: Sequence[int], metrics: Sequence[Metric], max_queries: int | None) -> None:
    if any(k < 1 for k in ks):
        raise InputError(f"ks must be positive, not {list(ks)}")
    unknown = set(metrics) - set(EVERY_METRIC)
    if unknown or not metrics:
        raise InputError(f"metrics must be among {', '.join(EVERY_METRIC)}, not {sorted(unknown) or 'empty'}")
    if max_queries is not None and max_queries < 1:
        raise InputError(f"max_queries must be positive, not {max_queries}")
