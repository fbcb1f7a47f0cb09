"""Searches of one collection: asked of Milvus, or carried out here where an exact answer is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from serve.store.grouping import best_of_each_label
from serve.store.milvus.definition import MilvusDefinition
from serve.store.milvus.engine import Engine
from serve.store.milvus.expressions import all_of, expression, keys_in, quoted
from serve.store.milvus.keys import id_of
from serve.store.milvus.reading import MOST_ROWS, Reading
from serve.store.milvus.records import Row
from serve.store.protocol import (
    Hit,
    ItemId,
    SearchPlan,
    SearchQuery,
    SearchResult,
    StoreError,
    Strategy,
    Unsupported,
    Vectors,
)
from serve.store.rows import check_id

# Numbers that an exact search over an approximate index may fetch: 256 MiB of float32.
_MOST_FETCHED = 2**26
# Part of all items below which a filter is too selective for milvus-lite's approximate indexes.
_SELECTIVE = 0.25
# Hits of one message.
_MOST_HITS = 200_000


class Searching:
    """Searches one collection."""

    def __init__(self, engine: Engine, definition: MilvusDefinition, reading: Reading) -> None:
        self._engine = engine
        self._definition = definition
        self._reading = reading

    def run(self, vectors: Vectors, query: SearchQuery) -> SearchResult:
        """Searches by vectors of shape (n, dim) and unit length; see `Store.search`.

        Raises:
            StoreError: k is larger than Milvus takes.
            Unsupported: An exact search over an approximate index has too many vectors to look at.
        """
        if query.k > MOST_ROWS:
            raise StoreError(f"k is {query.k}; Milvus returns at most {MOST_ROWS:,} neighbours")
        where = expression(query.where, self._engine.dialect)
        condition = _excluding(where, [check_id(value) for value in query.exclude])
        hits, candidates = self._find(vectors, query, condition, filtered=bool(where))
        if query.group_by is not None:
            # Milvus's own grouping looks at a few times `k` neighbours and counts absent labels as one.
            hits = [
                best_of_each_label(
                    first, query, partial(self._further, vectors[at : at + 1], query, condition)
                )
                for at, first in enumerate(hits)
            ]
        return SearchResult(hits, self._plan(query, hits, candidates, filtered=bool(where)))

    def _find(
        self, vectors: Vectors, query: SearchQuery, condition: str, *, filtered: bool
    ) -> tuple[list[list[Hit]], int | None]:
        """Hits of each vector, and the number of candidates where they were compared here.

        Args:
            vectors: (n, dim), unit length.
            query: What is asked for; `condition` says what of its filter and of its excluded ids.
            condition: Only rows that pass it.
            filtered: Whether it may leave few rows.
        """
        if not len(vectors):
            return [], None
        if self._compares_here(query, condition, filtered=filtered):
            rows = self._fetched(query, condition)
            return _compared(vectors, query, rows), len(rows)
        return self._asked(vectors, query, condition), None

    def _further(
        self, vector: Vectors, query: SearchQuery, condition: str, labels: list[str], ids: list[ItemId]
    ) -> list[Hit]:
        """Hits of one vector, of shape (1, dim), outside these labels and ids."""
        listed = ", ".join(map(quoted, labels))
        unseen = f"(label is null) or (label not in [{listed}])" if labels else ""
        rest = _excluding(all_of(condition, unseen), ids)
        return self._find(vector, query, rest, filtered=True)[0][0]

    def _compares_here(self, query: SearchQuery, condition: str, *, filtered: bool) -> bool:
        """Whether the vectors that pass are fetched and compared, instead of asking the index.

        milvus-lite walks its graph over passing rows only, which finds ever fewer of the right ones the fewer
        pass: it is asked only where many do. A server has a plan of its own for that.
        """
        if self._definition.index.exact:
            return False
        if query.exact:
            return True
        if not (filtered and self._engine.embedded):
            return False
        passing = self._reading.count(condition)
        few = passing <= _SELECTIVE * self._reading.count("")
        return few and passing * self._definition.dim <= _MOST_FETCHED

    def _asked(self, vectors: Vectors, query: SearchQuery, condition: str) -> list[list[Hit]]:
        """Asks Milvus."""
        parameters = self._definition.index.search_parameters(query.k, query.effort)
        at_a_time = max(1, _MOST_HITS // query.k)
        found: list[list[Hit]] = []
        for start in range(0, len(vectors), at_a_time):
            answers = self._engine.call(
                "search",
                self._definition.inside,
                data=list(vectors[start : start + at_a_time]),
                anns_field="vector",
                limit=query.k,
                filter=condition,
                output_fields=_fields(query),
                search_params={"metric_type": "COSINE", "params": parameters},
            )
            found += [
                [_hit(hit["id"], float(hit["distance"]), hit["entity"]) for hit in answer]
                for answer in answers
            ]
        return [_similar_enough(hits, query.min_similarity) for hits in found]

    def _fetched(self, query: SearchQuery, condition: str) -> list[Row]:
        """All vectors that pass, for an exact search over an approximate index."""
        most = _MOST_FETCHED // self._definition.dim
        count = self._reading.count(condition)
        if count > most:
            raise Unsupported(
                f"An exact search over the index {self._definition.index} would fetch {count:,} vectors, "
                f"more than {most:,}; narrow the filter, or build the collection with the index FLAT"
            )
        return self._reading.everything(condition, ["vector", *_fields(query)])

    def _plan(
        self, query: SearchQuery, hits: list[list[Hit]], candidates: int | None, *, filtered: bool
    ) -> SearchPlan:
        strategy: Strategy = "approximate"
        if query.min_similarity is None and hits and not any(hits):
            strategy, candidates = "empty", 0
        elif candidates is not None or self._definition.index.exact:
            strategy = "exact_subset" if filtered else "exact"
        return SearchPlan(strategy, candidates, 0.0 if candidates == 0 else None, str(self._definition.index))


def _excluding(condition: str, ids: Sequence[ItemId]) -> str:
    """A condition that these ids do not pass."""
    return all_of(condition, keys_in(ids, negate=True))


def _fields(query: SearchQuery) -> list[str]:
    if query.with_metadata:
        return ["label", "metadata"]
    # milvus-lite returns every field where none is named.
    return ["label"] if query.group_by is not None else ["id"]


def _hit(key: str, similarity: float, row: Row) -> Hit:
    # Rounding may carry the cosine past 1.
    return Hit(id_of(key), min(1.0, max(-1.0, similarity)), row.get("label"), row.get("metadata") or {})


def _compared(vectors: Vectors, query: SearchQuery, rows: list[Row]) -> list[list[Hit]]:
    """The best of these rows for each vector."""
    if not rows:
        return [[] for _ in vectors]
    similarities = vectors @ np.asarray([row["vector"] for row in rows], dtype=np.float32).T
    order = np.argsort(-similarities, axis=1, kind="stable")[:, : query.k]
    return [
        _similar_enough(
            [_hit(rows[at]["id"], float(line[at]), rows[at]) for at in best], query.min_similarity
        )
        for line, best in zip(similarities, order.tolist(), strict=True)
    ]


def _similar_enough(hits: list[Hit], least: float | None) -> list[Hit]:
    return hits if least is None else [hit for hit in hits if hit.similarity >= least]
