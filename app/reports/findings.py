"""Examples and subsets: failures, successes, confusions, wrong labels, duplicates, classes and slices."""

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.evaluation.evaluated_models import EvaluatedModel
from app.evaluation.evaluation_set import EvaluationSet

SHOWN = 7  # neighbours beside a query
SUSPECT_NEIGHBOURS = 8
SUSPECT_FROM = 0.75  # fraction of its neighbours
LIKE_PIXELS = 0.97  # cosine of centred pixels of one picture saved twice, or of two from one burst
LIKE_EMBEDDING = 0.9995
SLICES_AT_MOST = 20


@dataclass(frozen=True)
class Confusion:
    """Two classes, by label, whose items are often each other's nearest neighbours."""

    first: int
    second: int
    count: int  # queries of either whose nearest neighbour is of the other
    example: tuple[int, int]  # query row, neighbour row


@dataclass(frozen=True)
class Suspect:
    """An item whose neighbours mostly have one other label, so that its own may be wrong."""

    row: int
    label: int
    neighbours: int  # their label
    fraction: float  # of its neighbours with that label
    example: int  # row of the nearest item with that label


@dataclass(frozen=True)
class Duplicate:
    """Two items, by row, that look like the same image."""

    first: int
    second: int
    similarity: float
    same_label: bool


@dataclass(frozen=True)
class Slice:
    """Queries with one value of a metadata column."""

    column: str
    value: str  # or a range, as text
    queries: int  # how many
    recall: float  # at 1
    map_at_r: float


@dataclass(frozen=True)
class Retrieval:
    """A query and its nearest neighbours."""

    row: int
    rank: int  # of its first match
    neighbours: list[tuple[int, float, bool]]  # row, similarity, whether it matches


def successes(model: EvaluatedModel, items: EvaluationSet, limit: int = 8, seed: int = 0) -> list[Retrieval]:
    """Queries whose nearest neighbour matches, drawn at random, of different classes."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(model.hits[:, 0]))
    return [_retrieval(model, position) for position in _of_different_classes(order, model, items, limit)]


def failures(model: EvaluatedModel, items: EvaluationSet, limit: int = 12) -> list[Retrieval]:
    """Queries with the worst rank of the first match; among equal ranks the most similar wrong neighbour."""
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


def confusions(model: EvaluatedModel, items: EvaluationSet, limit: int = 12) -> list[Confusion]:
    """Pairs of classes most often confused at rank 1, most frequent first."""
    counts: Counter[tuple[int, int]] = Counter()
    examples: dict[tuple[int, int], tuple[int, int]] = {}
    for row, neighbour, hit in zip(model.query_rows, model.neighbours[:, 0], model.hits[:, 0], strict=True):
        if not hit:
            labels = sorted((int(items.labels[row]), int(items.labels[neighbour])))
            pair = (labels[0], labels[1])
            counts[pair] += 1
            examples.setdefault(pair, (int(row), int(neighbour)))
    return [Confusion(*pair, count, examples[pair]) for pair, count in counts.most_common(limit)]


def suspects(model: EvaluatedModel, items: EvaluationSet, limit: int = 12) -> list[Suspect]:
    """Items whose nearest neighbours mostly share one other label, and of which none has their own."""
    depth = min(SUSPECT_NEIGHBOURS, model.neighbours.shape[1])
    found = []
    for position in np.flatnonzero(~model.hits[:, :depth].any(axis=1)):
        neighbours = model.neighbours[position, :depth]
        values, counts = np.unique(items.labels[neighbours], return_counts=True)
        fraction = counts.max() / depth
        if fraction >= SUSPECT_FROM:
            row, other = int(model.query_rows[position]), int(values[counts.argmax()])
            example = int(neighbours[items.labels[neighbours] == other][0])
            found.append(Suspect(row, int(items.labels[row]), other, float(fraction), example))
    return sorted(found, key=lambda suspect: -suspect.fraction)[:limit]


def near_duplicates(
    models: list[EvaluatedModel], items: EvaluationSet, limit: int = 12
) -> tuple[int, list[Duplicate]]:
    """Pairs that look like the same image, by pixels if there are images, else by the first model.

    Returns:
        Their number, and the first ``limit`` of them: those with different labels before the others.
    """
    pixels = [model for model in models if model.name == "raw pixels"]
    model, least = (pixels[0], LIKE_PIXELS) if pixels else (models[0], LIKE_EMBEDDING)
    found: dict[tuple[int, int], Duplicate] = {}
    for position in np.flatnonzero(model.similarity[:, 0] >= least):
        rows = sorted((int(model.query_rows[position]), int(model.neighbours[position, 0])))
        same = bool(items.labels[rows[0]] == items.labels[rows[1]])
        found[rows[0], rows[1]] = Duplicate(rows[0], rows[1], float(model.similarity[position, 0]), same)
    ordered = sorted(found.values(), key=lambda pair: (pair.same_label, -pair.similarity))
    return len(ordered), ordered[:limit]


def class_recalls(
    model: EvaluatedModel, items: EvaluationSet
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Labels that have queries, their recall@1, and their numbers of queries; worst first."""
    labels = items.labels[model.query_rows]
    counts = np.bincount(labels)
    sums = np.bincount(labels, weights=model.retrieval.values["recall@1"].numpy())
    present = np.flatnonzero(counts)
    recalls = sums[present] / counts[present]
    order = np.lexsort((-counts[present], recalls))
    return present[order], recalls[order], counts[present][order]


def slices(model: EvaluatedModel, items: EvaluationSet) -> list[Slice]:
    """Recall by values of metadata columns; columns of many numbers are divided at their quartiles."""
    found = []
    for name, values in items.columns.items():
        for value, members in _members(values[model.query_rows]).items():
            found.append(
                Slice(
                    name,
                    value,
                    int(members.sum()),
                    float(model.retrieval.values["recall@1"].numpy()[members].mean()),
                    float(model.retrieval.values["map@r"].numpy()[members].mean()),
                )
            )
    return found


def _members(values: NDArray[Any]) -> dict[str, NDArray[np.bool_]]:
    """Map each value or range to bool (Q,); empty if a column does not divide the queries usefully."""
    if values.ndim != 1:
        return {}
    texts = np.array([str(value) for value in values.tolist()])  # astype(str) does not work for lists
    distinct = np.unique(texts)
    if 2 <= len(distinct) <= SLICES_AT_MOST:
        return {str(value): texts == value for value in distinct}
    if values.dtype.kind not in "iuf" or len(distinct) < 2:
        return {}
    cuts = np.unique(np.nanquantile(values, [0, 0.25, 0.5, 0.75, 1]))
    ranges = {}
    for low, high in itertools.pairwise(cuts):
        members = (values >= low) & ((values < high) | (high == cuts[-1]) & (values == high))
        if members.any():
            ranges[f"{low:g} to {high:g}"] = members
    return ranges
