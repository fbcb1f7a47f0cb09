"""Byte-identical images, which any model retrieves for each other."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from app.evaluation.evaluation_set import EvaluationSet, Rows
from data.table import ImageTable
from models.errors import InputError
from models.preprocess import ImageError

READ_AHEAD = 64  # images


@dataclass(frozen=True)
class Duplicates:
    """Counts of byte-identical images in an evaluation."""

    groups: int  # sets of two or more identical images
    labels_differ: int  # those whose images have more than one label
    queries: int  # queries with an identical image in the gallery
    of_queries: int  # all queries
    dropped: int = 0  # copies that were left out

    @property
    def note(self) -> str | None:
        """A sentence for readers of the metrics; None if no images are identical."""
        sentences = []
        if self.dropped:
            sentences.append(f"{self.dropped:,} byte-identical copies of other images were left out.")
        elif self.queries:
            sentences.append(
                f"{self.queries:,} of {self.of_queries:,} queries have a byte-identical image in the "
                "gallery; recall@k counts them as found: --drop-duplicates leaves one of each."
            )
        if self.labels_differ:
            sentences.append(f"{self.labels_differ:,} groups of byte-identical images have different labels.")
        return " ".join(sentences) or None


def first_copies(items: EvaluationSet) -> Rows:
    """The first row whose file has the same bytes, for each image, int64 (N,).

    Only files whose size occurs more than once are read.
    """
    first = np.arange(len(items.labels))
    sizes = _sizes(items.images)
    _, group, count = np.unique(sizes, return_inverse=True, return_counts=True)
    alike = np.flatnonzero((count[group] > 1) & (sizes > 0))
    seen: dict[bytes, int] = {}

    def digest(row: int) -> bytes | None:
        try:
            return hashlib.blake2b(items.images.read(row), digest_size=16).digest()
        except ImageError:
            return None

    with ThreadPoolExecutor(2) as pool:
        for chunk in np.array_split(alike, range(READ_AHEAD, len(alike), READ_AHEAD)):
            for row, found in zip(chunk.tolist(), pool.map(digest, chunk.tolist()), strict=True):
                if found is not None:
                    first[row] = seen.setdefault(found, row)
    return first


def count_duplicates(items: EvaluationSet, first: Rows) -> Duplicates:
    """Count what :func:`first_copies` found."""
    rows = np.arange(len(first))
    queries, gallery = (rows if side is None else side for side in (items.queries, items.gallery))
    in_gallery = np.bincount(first[gallery], minlength=len(first))[first[queries]]
    # If every image is a query against all others, the count includes the query itself.
    identical = in_gallery > (items.queries is None)
    labels = np.unique(np.stack([first, items.labels]), axis=1)[0]
    return Duplicates(
        groups=int((np.bincount(first) > 1).sum()),
        labels_differ=int((np.bincount(labels) > 1).sum()),
        queries=int(identical.sum()),
        of_queries=len(queries),
    )


def without_duplicates(items: EvaluationSet, first: Rows) -> tuple[EvaluationSet, NDArray[np.bool_]]:
    """Keep one of each set of identical images: the first query if there are queries, else the first.

    Returns:
        The remaining images, and bool (N,), true for the rows that remain.

    Raises:
        InputError: every image of the gallery is a copy of a query.
    """
    if items.queries is None or items.gallery is None:
        good = first == np.arange(len(first))
        return items.keep(good), good
    queries = _one_of_each(items.queries, first)
    gallery = _one_of_each(items.gallery, first)
    gallery = gallery[~np.isin(first[gallery], first[queries])]
    if not len(gallery):
        raise InputError(
            f"{items.source}: every image of the gallery is byte-identical to a query; "
            "leave --drop-duplicates out, or choose other queries"
        )
    good = np.ones(len(first), dtype=bool)
    good[items.queries] = good[items.gallery] = False
    good[queries] = good[gallery] = True
    return replace(items, queries=queries, gallery=gallery).keep(good), good


def _one_of_each(rows: Rows, first: Rows) -> Rows:
    kept: Rows = rows[np.sort(np.unique(first[rows], return_index=True)[1])]
    return kept


def _sizes(table: ImageTable) -> NDArray[np.int64]:
    """Size in bytes of each image's file, int64 (N,); 0 if the file is missing."""
    names = table.rows.column_names
    roots, offset, size = (
        table.rows.column(name).to_numpy() if name in names else np.full(len(table), default)
        for name, default in (("root", 0), ("offset", -1), ("size", 0))
    )
    sizes = size.astype(np.int64)
    for row in np.flatnonzero(offset < 0).tolist():
        try:
            sizes[row] = (table.roots[roots[row]] / table.name(row)).stat().st_size
        except OSError:
            sizes[row] = 0
    return sizes
