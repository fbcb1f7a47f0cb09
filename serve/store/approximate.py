"""Approximate indexes over a segment: built from any FAISS factory string, kept in a file beside the vectors.

Hits carry exact similarities: where an index keeps compressed vectors, its hits are scored anew with the
segment's own. An HNSW graph keeps no vectors at all; it looks into the segment's memory-mapped ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss as typed_faiss
import numpy as np

from serve.store import exact
from serve.store.exact import Positions
from serve.store.protocol import StoreError, Vectors

faiss: Any = typed_faiss  # the types it ships lack much of what it has

EXACT = "Flat"
# Neighbours that an HNSW search keeps in view: for few hits, and per hit for many. On clusters of 20 vectors
# recall@10 is 1.0 with these, and 0.996 where a filter halves the 46 neighbours explored (`bench_store.py`).
_VIEW = 64
_VIEW_PER_HIT = 4
# Lists that an inverted index looks into at least, of which each holds a small part of the rows.
_PROBED = 8
# Hits that a compressed index is asked for per hit wanted, before they are scored anew.
_RESCORED = 4
# Rows between two looks at whether the building should stop, and rows for training per list or code.
_STEP = 8192
_TRAINING_ROWS = 200_000
_ROWS_PER_LIST = 39
_pointer = faiss.swig_ptr
_SKIP = faiss.IO_FLAG_SKIP_STORAGE


def check_factory(factory: str, dim: int) -> None:
    """Raises StoreError unless FAISS can make such an index for inner products."""
    if factory != EXACT:
        _made(factory, dim)


class FaissIndex:
    """A FAISS index over the rows of `vectors`."""

    def __init__(self, factory: str, index: Any, vectors: Vectors) -> None:
        self.factory = factory
        self._index = index
        self._vectors = vectors
        # pytorch-metric-learning, where it is loaded too, replaces `search` by one that knows no parameters.
        self._search = getattr(index, "search_numpy", index.search)
        self._parameters: dict[int, Any] = {}
        self.compressed = not isinstance(index, faiss.IndexHNSWFlat)
        self._storage = None if self.compressed else _lend_vectors(index, vectors)
        inverted = faiss.try_extract_index_ivf(index)
        if inverted is not None:  # set once and for all: changing it between searches would be a race
            inverted.nprobe = max(_PROBED, inverted.nlist // 16)

    @classmethod
    def load(cls, path: Path, factory: str, vectors: Vectors) -> FaissIndex:
        """Reads an index that `build` wrote for these vectors."""
        return cls(factory, faiss.read_index(str(path), _SKIP), vectors)

    def least(self, k: int) -> int:
        """Neighbours that a search for `k` explores at least."""
        return max(_VIEW, _VIEW_PER_HIT * k)

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Positions]:
        """The `k` nearest rows as far as the index finds them; see `exact.scan`."""
        if not self.compressed:
            return self._walked(queries, k, self.least(k))
        wider = min(len(self._vectors), _RESCORED * k)
        found = self._search(queries, wider)[1]
        scores = np.einsum("qd,qkd->qk", queries, self._vectors[found])
        return exact.merge([(scores, found)], k)

    def _walked(self, queries: Vectors, k: int, view: int) -> tuple[Vectors, Positions]:
        """The graph's hits. FAISS's own wrapper takes 30 µs to check arguments, a tenth of the search."""
        parameters = self._parameters.get(view)
        if parameters is None:  # never changed afterwards, so that searches may share it
            parameters = self._parameters[view] = faiss.SearchParametersHNSW(efSearch=view)
        similarities = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        self._index.search_c(
            len(queries), _pointer(queries), k, _pointer(similarities), _pointer(rows), parameters
        )
        return similarities, rows


def can_grow(index: object) -> bool:
    """Whether `build` can add rows to such an index instead of building one anew."""
    return isinstance(index, FaissIndex) and not index.compressed


def build(
    factory: str,
    vectors: Vectors,
    path: Path,
    *,
    grown: tuple[Path, int] | None = None,
    threads: int,
    stop: Callable[[], bool],
) -> bool:
    """Builds an index over vectors and writes it to a file.

    Args:
        factory: FAISS index factory string.
        vectors: (n, dim) float32, unit length.
        path: File to write; nobody has waited for the disk yet.
        grown: File of a graph over the first so many rows, to which the others are added; None builds anew.
        threads: OpenMP threads.
        stop: Asked now and then; True abandons the work.

    Returns:
        Whether there is an index now: not where there are too few rows to train it, or it was abandoned.
    """
    exact.use_threads(threads)
    index, done = _made(factory, vectors.shape[1]), 0
    if grown is not None:
        index, done = _with_own_vectors(faiss.read_index(str(grown[0]), _SKIP), vectors[: grown[1]]), grown[1]
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None and len(vectors) < _ROWS_PER_LIST * inverted.nlist:
        return False
    if not index.is_trained:
        chosen = np.linspace(0, len(vectors) - 1, min(len(vectors), _TRAINING_ROWS)).astype(np.int64)
        index.train(np.ascontiguousarray(vectors[chosen]))
    for start in range(done, len(vectors), _STEP):
        if stop():
            return False
        index.add(vectors[start : start + _STEP])
    flags = _SKIP if isinstance(index, faiss.IndexHNSWFlat) else 0
    faiss.write_index(index, str(path), flags)
    return True


def _made(factory: str, dim: int) -> Any:
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise StoreError(
            f"FAISS makes no index {factory!r} for {dim} dimensions; use Flat, HNSW32 or IVF1024,SQ8"
        ) from None


def _with_own_vectors(index: Any, vectors: Vectors) -> Any:
    """A graph that was read without vectors, with a copy of them: only such a one takes more rows."""
    storage = faiss.IndexFlatIP(vectors.shape[1])
    storage.add(vectors)
    storage.this.disown()
    index.storage, index.own_fields = storage, True
    return index


def _lend_vectors(index: Any, vectors: Vectors) -> Any:
    """Lets an HNSW graph read the segment's vectors instead of owning a copy; keep what is returned alive."""
    storage = faiss.IndexFlatIP(vectors.shape[1])
    nobody = faiss.MaybeOwnedVectorUInt8().owner
    storage.codes = faiss.MaybeOwnedVectorUInt8.create_view(faiss.swig_ptr(vectors), vectors.nbytes, nobody)
    storage.ntotal = len(vectors)
    index.storage = storage
    index.own_fields = False
    return storage
