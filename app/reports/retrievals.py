"""Queries with their neighbours: some that succeed, and the worst failures."""

from dataclasses import dataclass

import numpy as np

from app.evaluation.evaluated_models import EvaluatedModel
from app.evaluation.evaluation_set import EvaluationSet

SHOWN = 7


@dataclass(frozen=True)
class Retrieval:
    """A query and its nearest neighbours.

    Attributes:
        row: the query.
        rank: rank of its first match.
        neighbours: (row, similarity, match) of the nearest.
    """

    row: int
    rank: int
    neighbours: list[tuple[int, float, bool]]


def successes(model: EvaluatedModel, items: EvaluationSet, limit: int = 8, seed: int = 0) -> list[Retrieval]:
    """Queries whose nearest neighbour matches, drawn at random, of different classes."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(model.hits[:, 0]))
    return [_retrieval(model, position) for position in _of_different_classes(order, model, items, limit)]


def failures(model: EvaluatedModel, items: EvaluationSet, limit: int = 12) -> list[Retrieval]:
    """Queries whose first match comes last; among equals those most sure of the wrong neighbour."""
    wrong = np.flatnonzero(~model.hits[:, 0])
    reciprocal = model.retrieval.values["mrr"].numpy()[wrong]
    order = wrong[np.lexsort((-model.similarity[wrong, 0], reciprocal))]
    return [_retrieval(model, position) for position in _of_different_classes(order, model, items, limit)]


def _of_different_classes(
    order: np.ndarray, model: EvaluatedModel, items: EvaluationSet, limit: int
) -> list[int]:
    chosen: dict[int, int] = {}
    for position in order.tolist():
        chosen.setdefault(int(items.labels[model.query_rows[position]]), position)
        if len(chosen) == limit:
            break
    return list(chosen.values())


def _retrieval(model: EvaluatedModel, position: int) -> Retrieval:
    return Retrieval(
        row=int(model.query_rows[position]),
        rank=round(1 / float(model.retrieval.values["mrr"][position])),
        neighbours=[
            (int(row), float(similarity), bool(hit))
            for row, similarity, hit in zip(
                model.neighbours[position, :SHOWN],
                model.similarity[position, :SHOWN],
                model.hits[position, :SHOWN],
                strict=True,
            )
        ],
    )
