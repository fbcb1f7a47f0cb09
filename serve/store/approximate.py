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
        self._compressed = not isinstance(index, faiss.IndexHNSWFlat)
        self._storage = None if self._compressed else _lend_vectors(index, vectors)
        inverted = faiss.try_extract_index_ivf(index)
        if inverted is not None:  # set once and for all: changing it between searches would be a race
            inverted.nprobe = max(_PROBED, inverted.nlist // 16)

    @classmethod
    def load(cls, path: Path, factory: str, vectors: Vectors) -> FaissIndex:
        """Reads an index that `build` wrote for these vectors."""
        return cls(factory, faiss.read_index(str(path), faiss.IO_FLAG_SKIP_STORAGE), vectors)

    def least(self, k: int) -> int:
        """Neighbours that a search for `k` explores at least."""
        return max(_VIEW, _VIEW_PER_HIT * k)

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Positions]:
        """The `k` nearest rows as far as the index finds them; see `exact.scan`."""
        if not self._compressed:
            parameters = faiss.SearchParametersHNSW(efSearch=self.least(k))
            similarities, found = self._search(queries, k, params=parameters)
            return similarities, found
        wider = min(len(self._vectors), _RESCORED * k)
        found = self._search(queries, wider)[1]
        scores = np.einsum("qd,qkd->qk", queries, self._vectors[found])
        return exact.merge([(scores, found)], k)


def build(factory: str, vectors: Vectors, path: Path, *, threads: int, stop: Callable[[], bool]) -> bool:
    """Builds an index over vectors and writes it to a file.

    Args:
        factory: FAISS index factory string.
        vectors: (n, dim) float32, unit length.
        path: File to write; nobody has waited for the disk yet.
        threads: OpenMP threads.
        stop: Asked now and then; True abandons the work.

    Returns:
        Whether there is an index now: not where there are too few rows to train it, or it was abandoned.
    """
    exact.use_threads(threads)
    index = _made(factory, vectors.shape[1])
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None and len(vectors) < _ROWS_PER_LIST * inverted.nlist:
        return False
    if not index.is_trained:
        chosen = np.linspace(0, len(vectors) - 1, min(len(vectors), _TRAINING_ROWS)).astype(np.int64)
        index.train(np.ascontiguousarray(vectors[chosen]))
    for start in range(0, len(vectors), _STEP):
        if stop():
            return False
        index.add(vectors[start : start + _STEP])
    flags = faiss.IO_FLAG_SKIP_STORAGE if isinstance(index, faiss.IndexHNSWFlat) else 0
    faiss.write_index(index, str(path), flags)
    return True


def _made(factory: str, dim: int) -> Any:
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise StoreError(
            f"FAISS makes no index {factory!r} for {dim} dimensions; use Flat, HNSW32 or IVF1024,SQ8"
        ) from None


def _lend_vectors(index: Any, vectors: Vectors) -> Any:
    """Lets an HNSW graph read the segment's vectors instead of owning a copy; keep what is returned alive."""
    storage = faiss.IndexFlatIP(vectors.shape[1])
    nobody = faiss.MaybeOwnedVectorUInt8().owner
    storage.codes = faiss.MaybeOwnedVectorUInt8.create_view(faiss.swig_ptr(vectors), vectors.nbytes, nobody)
    storage.ntotal = len(vectors)
    index.storage = storage
    index.own_fields = False
    return storage
