"""The images that an evaluation is about: which rows of a source, and which of them are queries."""

import fnmatch
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.sources import open_source
from data.splits import select
from data.table import ImageTable
from models.errors import InputError
from models.preprocess import WHITE, ImageError

READ_AHEAD = 64

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """Labelled images and their part in the evaluation.

    Attributes:
        table: the images, N rows.
        source: what the user called them.
        split: the part that was taken, or "all".
        split_hash: of the whole source's split; None where it was not split.
        queries: int64 rows that are queries; None where every image is a query against all others.
        gallery: int64 rows of the gallery; None likewise.
        white_level: of their 16-bit grey, see :class:`models.preprocess.Preprocess`.
    """

    table: ImageTable
    source: str
    split: str
    split_hash: str | None
    queries: Rows | None = None
    gallery: Rows | None = None
    white_level: int = WHITE

    def keep(self, good: NDArray[np.bool_]) -> "ImageSet":
        """Without the rows that `good`, bool (N,), marks false."""
        new = np.cumsum(good) - 1

        def renumbered(rows: Rows | None) -> Rows | None:
            return None if rows is None else new[rows[good[rows]]]

        return replace(
            self,
            table=self.table.take(np.flatnonzero(good)),
            queries=renumbered(self.queries),
            gallery=renumbered(self.gallery),
        )

    def read_all(self) -> Iterator[bytes | ImageError]:
        """Every image's bytes, in order, or the error that names it; files are read ahead in threads."""
        return self.read(np.arange(len(self.table)))

    def read(self, wanted: Rows) -> Iterator[bytes | ImageError]:
        """As :meth:`read_all`, of some rows."""

        def read(row: int) -> bytes | ImageError:
            try:
                return self.table.read(row)
            except ImageError as error:
                return error

        rows = iter(wanted.tolist())
        with ThreadPoolExecutor(2) as pool:
            while chunk := list(islice(rows, READ_AHEAD)):
                yield from pool.map(read, chunk)


def select_images(
    source: str,
    split: str,
    query: str | None = None,
    gallery: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ImageSet:
    """Opens a source and takes the part that is to be evaluated.

    Args:
        source: see `data.sources.open_source`.
        split: "test", "val" or "train" of the split, or "all".
        query: pattern of file names (`test_*`); None takes the source's own `is_query` column, if any.
        gallery: pattern of file names, several separated by commas; None takes all that are no queries.
        settings: how the source is split, see `data.splits.select`.

    Raises:
        InputError: nothing is left, or a pattern matches nothing.
    """
    table = open_source(source).table()
    rows, split_hash = select(table, split, settings)
    if split != "all":
        table = table.take(rows)
    images = ImageSet(table, source, split, split_hash)
    if query is not None:
        asked = _matching(table, query)
        others = ~asked if gallery is None else _matching(table, gallery)
    elif table.has_queries:
        asked, others = table.flags("is_query"), table.flags("is_gallery")
    elif gallery is not None:
        raise InputError("--gallery needs --query: say which images are the queries")
    else:
        return images
    if not asked.any() or not others.any():
        raise InputError(
            f"{source}: {asked.sum()} queries and {others.sum()} gallery images; both are needed"
        )
    return ImageSet(table, source, split, split_hash, np.flatnonzero(asked), np.flatnonzero(others))


def _matching(table: ImageTable, patterns: str) -> NDArray[np.bool_]:
    """Bool (N,): whether the file name (without folders) or the whole name matches one of the patterns."""
    globs = patterns.split(",")
    names = [table.name(row) for row in range(len(table))]
    return np.array(
        [any(fnmatch.fnmatch(n.rsplit("/", 1)[-1], g) or fnmatch.fnmatch(n, g) for g in globs) for n in names]
    )
