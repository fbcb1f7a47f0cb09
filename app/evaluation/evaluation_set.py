"""The labelled items of an evaluation, and which of them are queries."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.sources import open_source
from data.splits import select
from data.table import ImageTable
from models.errors import InputError
from models.preprocess import WHITE

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled items, and their roles in the evaluation.

    Raises:
        InputError: the column `relevance` does not exist.
    """

    labels: NDArray[np.int64]  # (N,), indices into `class_names`
    class_names: list[str]
    queries: Rows | None = None  # None if every item is a query against all others
    gallery: Rows | None = None  # None likewise
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)  # metadata, (N,); the report's slices
    # Column of labels separated by ";", of which items that match share at least one; None if items with
    # equal `labels` match.
    relevance: str | None = None
    table: ImageTable | None = None  # the images, N rows; None if only embeddings were given
    source: str | None = None  # of the images, as the user named it
    split: str | None = None  # "train", "val", "test" or "all"
    split_hash: str | None = None  # of the whole source's split; None if it was not split
    white_level: int = WHITE  # of 16-bit grey images, see models.preprocess.Preprocess

    def __post_init__(self) -> None:
        if self.relevance is not None and self.relevance not in self.columns:
            known = ", ".join(self.columns) or "none"
            raise InputError(f"--relevance {self.relevance}: the data has no such column, only {known}")

    @classmethod
    def of_images(cls, table: ImageTable, **about: Any) -> "EvaluationSet":
        """All rows of a table, with its metadata; ``about`` has further attributes."""
        return cls(table.labels, table.class_names, columns=_columns(table), table=table, **about)

    @cached_property
    def label_sets(self) -> list[frozenset[str]] | None:
        """Labels of each item in the column `relevance`; None without such a column."""
        if self.relevance is None:
            return None
        return [
            frozenset(str(v) for v in (value if isinstance(value, (list, tuple)) else str(value).split(";")))
            for value in self.columns[self.relevance].tolist()
        ]

    @property
    def images(self) -> ImageTable:
        """The table.

        Raises:
            InputError: only embeddings were given.
        """
        if self.table is None:
            raise InputError("this needs images, not embeddings alone: give --data")
        return self.table

    def keep(self, good: NDArray[np.bool_]) -> "EvaluationSet":
        """The images for which `good`, bool (N,), is true."""
        new = np.cumsum(good) - 1
        queries, gallery = (
            None if rows is None else new[rows[good[rows]]] for rows in (self.queries, self.gallery)
        )
        table = self.images.take(np.flatnonzero(good))
        columns = _columns(table)
        return replace(
            self, labels=table.labels, table=table, queries=queries, gallery=gallery, columns=columns
        )


def select_images(
    source: str,
    split: str,
    query: str | None = None,
    gallery: str | None = None,
    settings: Mapping[str, Any] | None = None,
    relevance: str | None = None,
) -> EvaluationSet:
    """Open a source and select the images to evaluate.

    Args:
        source: see `data.sources.open_source`.
        split: "test", "val" or "train" of the split, or "all".
        query: pattern of file names (`test_*`); None uses the source's `is_query` column, if it has one.
        gallery: patterns of file names, separated by commas; None takes all images but the queries.
        settings: how the source is split, see `data.splits.select`.
        relevance: see `EvaluationSet`.

    Raises:
        InputError: no images are left, a pattern matches none, only a part of the images is both query and
            gallery, or the column does not exist.
    """
    table = open_source(source).table()
    rows, split_hash = select(table, split, settings)
    if split != "all":
        table = table.take(rows)
    sides: dict[str, Rows] = {}
    if query is not None or "is_query" in table.rows.column_names:
        if query is None:
            asked, others = table.flags("is_query"), table.flags("is_gallery")
        else:
            asked = _matching(table, query)
            others = ~asked if gallery is None else _matching(table, gallery)
        if not asked.any() or not others.any():
            chosen = [("--query", query), ("--gallery", gallery)]
            patterns = " ".join(f"{option} {pattern!r}" for option, pattern in chosen if pattern is not None)
            raise InputError(
                f"{source}: {asked.sum()} queries and {others.sum()} gallery images; both are needed: "
                f"correct {patterns or 'the columns is_query and is_gallery'}"
            )
        both = int((asked & others).sum())
        if both < len(table):  # otherwise every image is a query against all others
            if both:
                raise InputError(
                    f"{source}: {both} images are queries and in the gallery, too, where each would find "
                    "itself: make the two disjoint, or select all images for both"
                )
            sides = {"queries": np.flatnonzero(asked), "gallery": np.flatnonzero(others)}
    elif gallery is not None:
        raise InputError("--gallery needs --query: say which images are the queries")
    return EvaluationSet.of_images(
        table, source=source, split=split, split_hash=split_hash, relevance=relevance, **sides
    )


def _columns(table: ImageTable) -> dict[str, NDArray[Any]]:
    return {name: _column(values.to_pylist()) for name, values in table.metadata.items()}


def _column(values: list[Any]) -> NDArray[Any]:
    """Values of one metadata column, (N,); lists stay objects, of which numpy would make a matrix."""
    if not any(isinstance(value, (list, dict)) for value in values):
        return np.array(values)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _matching(table: ImageTable, patterns: str) -> NDArray[np.bool_]:
    """Bool (N,): whether the file name, with or without its folders, matches one of the patterns."""
    globs = patterns.split(",")
    names = [table.name(row) for row in range(len(table))]
    return np.array(
        [any(fnmatch.fnmatch(n.rsplit("/", 1)[-1], g) or fnmatch.fnmatch(n, g) for g in globs) for n in names]
    )
