"""Searches of one collection: asked of Milvus, or carried out here where an exact answer is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from serve.store.milvus.definition import MilvusDefinition
from serve.store.milvus.engine import Engine
from serve.store.milvus.expressions import all_of, keys_in, quoted
from serve.store.milvus.keys import id_of
from serve.store.milvus.reading import MOST_ROWS, Reading
from serve.store.milvus.records import Row
from serve.store.protocol import (
    Hit,
    ItemId,
    SearchPlan,
    SearchResult,
    StoreError,
    Strategy,
    Unsupported,
    Vectors,
)

# Numbers that an exact search over an approximate index may fetch: 256 MiB of float32.
_MOST_FETCHED = 2**26
# Part of all items below which a filter is too selective for milvus-lite's approximate indexes.
_SELECTIVE = 0.25
# Hits of one message.
_MOST_HITS = 200_000


@dataclass(frozen=True, slots=True)
class Request:
    """A checked search; `condition` is an expression and covers excluded ids."""

    queries: Vectors
    k: int
    condition: str
    filtered: bool
    min_similarity: float | None
    group_by_label: bool
    exact: bool
    with_metadata: bool
    effort: int | None = None


def excluding(condition: str, ids: Sequence[ItemId]) -> str:
    """A condition that these ids do not pass."""
    return all_of(condition, keys_in(ids, negate=True))


class Searching:
    """Searches one collection."""

    def __init__(self, engine: Engine, definition: MilvusDefinition, reading: Reading) -> None:
        self._engine = engine
        self._definition = definition
        self._reading = reading

    def run(self, request: Request) -> SearchResult:
        """Carries out a search.

        Raises:
            StoreError: k is larger than Milvus takes.
            Unsupported: An exact search over an approximate index has too many vectors to look at.
        """
        if request.k > MOST_ROWS:
            raise StoreError(f"k is {request.k}; Milvus returns at most {MOST_ROWS:,} neighbours")
        hits, candidates = self._find(request)
        if request.group_by_label:
            hits = [
                self._grouped(replace(request, queries=request.queries[at : at + 1]), first)
                for at, first in enumerate(hits)
            ]
        return SearchResult(hits, self._plan(request, hits, candidates))

    def _find(self, request: Request) -> tuple[list[list[Hit]], int | None]:
        """Hits of each query, and the number of candidates where they were compared here."""
        if not len(request.queries):
            return [], None
        if self._compares_here(request):
            rows = self._fetched(request)
            hits = _compared(request, rows)
            return hits, len(rows)
        return self._asked(request), None

    def _compares_here(self, request: Request) -> bool:
        """Whether the vectors that pass are fetched and compared, instead of asking the index.

        milvus-lite walks its graph over passing rows only, which finds ever fewer of the right ones the fewer
        pass: it is asked only where many do. A server has a plan of its own for that.
        """
        if self._definition.index.exact:
            return False
        if request.exact:
            return True
        if not (request.filtered and self._engine.embedded):
            return False
        passing = self._reading.count(request.condition)
        few = passing <= _SELECTIVE * self._reading.count("")
        return few and passing * self._definition.dim <= _MOST_FETCHED

    def _asked(self, request: Request) -> list[list[Hit]]:
        """Asks Milvus."""
        parameters = self._definition.index.search_parameters(request.k, request.effort)
        at_a_time = max(1, _MOST_HITS // request.k)
        found: list[list[Hit]] = []
        for start in range(0, len(request.queries), at_a_time):
            answers = self._engine.call(
                "search",
                self._definition.inside,
                data=list(request.queries[start : start + at_a_time]),
                anns_field="vector",
                limit=request.k,
                filter=request.condition,
                output_fields=_fields(request),
                search_params={"metric_type": "COSINE", "params": parameters},
            )
            found += [
                [_hit(hit["id"], float(hit["distance"]), hit["entity"]) for hit in answer]
                for answer in answers
            ]
        return [_similar_enough(hits, request.min_similarity) for hits in found]

    def _fetched(self, request: Request) -> list[Row]:
        """All vectors that pass, for an exact search over an approximate index."""
        most = _MOST_FETCHED // self._definition.dim
        count = self._reading.count(request.condition)
        if count > most:
            raise Unsupported(
                f"An exact search over the index {self._definition.index} would fetch {count:,} vectors, "
                f"more than {most:,}; narrow the filter, or build the collection with the index FLAT"
            )
        return self._reading.everything(request.condition, ["vector", *_fields(request)])

    def _plan(self, request: Request, hits: list[list[Hit]], candidates: int | None) -> SearchPlan:
        strategy: Strategy = "approximate"
        if request.min_similarity is None and not any(hits) and len(request.queries):
            strategy, candidates = "empty", 0
        elif candidates is not None or self._definition.index.exact:
            strategy = "exact_subset" if request.filtered else "exact"
        return SearchPlan(strategy, candidates, 0.0 if candidates == 0 else None, str(self._definition.index))

    def _grouped(self, request: Request, hits: list[Hit]) -> list[Hit]:
        """The best hit of each label, `k` in all, starting from the `k` best hits of the one query.

        Milvus's own grouping looks at a few times `k` neighbours and counts absent labels as one. Each round
        here asks for the nearest items outside the labels found so far, so it brings at least one new label;
        its best of each label is the best of all, because earlier rounds had none of them.
        """
        best: list[Hit] = []
        labels: set[str] = set()
        while True:
            for hit in hits:
                if hit.label is None or hit.label not in labels:
                    best.append(hit)
                if hit.label is not None:
                    labels.add(hit.label)
            if len(hits) < request.k or len(best) >= request.k:
                kept = best[: request.k]
                return kept if request.with_metadata else [Hit(hit.id, hit.similarity) for hit in kept]
            listed = ", ".join(quoted(label) for label in sorted(labels))
            unseen = f"(label is null) or (label not in [{listed}])" if labels else ""
            lone = [hit.id for hit in best if hit.label is None]
            condition = excluding(all_of(request.condition, unseen), lone)
            hits = self._find(replace(request, condition=condition, filtered=True))[0][0]


def _fields(request: Request) -> list[str]:
    if request.with_metadata:
        return ["label", "metadata"]
    # milvus-lite returns every field where none is named.
    return ["label"] if request.group_by_label else ["id"]


def _hit(key: str, similarity: float, row: Row) -> Hit:
    # Rounding may carry the cosine past 1.
    return Hit(id_of(key), min(1.0, max(-1.0, similarity)), row.get("label"), row.get("metadata") or {})


def _compared(request: Request, rows: list[Row]) -> list[list[Hit]]:
    """The best of these rows for each query."""
    if not rows:
        return [[] for _ in request.queries]
    vectors = np.asarray([row["vector"] for row in rows], dtype=np.float32)
    similarities = request.queries @ vectors.T
    order = np.argsort(-similarities, axis=1, kind="stable")[:, : request.k]
    return [
        _similar_enough(
            [_hit(rows[at]["id"], float(line[at]), rows[at]) for at in best], request.min_similarity
        )
        for line, best in zip(similarities, order.tolist(), strict=True)
    ]


def _similar_enough(hits: list[Hit], least: float | None) -> list[Hit]:
    return hits if least is None else [hit for hit in hits if hit.similarity >= least]
