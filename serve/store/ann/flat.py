"""Exact inner-product search over rows of an array, whole or in part, with FAISS's kernels.

The arrays may be memory-mapped files: nothing is copied but the subset of a batched subset scan.
"""

from __future__ import annotations

import faiss
import numpy as np

from serve.store.types import Positions, Vectors

# From this many queries on, a matrix product beats one scan per query (measured at 128 and 512 dimensions).
BATCH = 8
# Rows that a batched subset scan copies at a time.
_BLOCK_BYTES = 16 * 2**20


def use_threads(threads: int) -> None:
    """Sets how many OpenMP threads FAISS uses when called from this thread; other threads keep theirs."""
    faiss.omp_set_num_threads(threads)


def scan(queries: Vectors, vectors: Vectors, k: int) -> tuple[Vectors, Positions]:
    """The `k` best rows of each query: similarities (n, k) descending; row numbers, −1 where there are fewer.

    FAISS decides by `queries · dim < threshold` whether to use a matrix product. Its own threshold leaves
    batches on the slow side by a factor of 3 to 6, and one that suits batches ruins single queries.
    """
    if len(vectors) == 0:
        return _nothing(len(queries), k)
    faiss.cvar.distance_compute_blas_threshold = BATCH * queries.shape[1]
    similarities, rows = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return similarities, rows


def scan_subset(queries: Vectors, vectors: Vectors, subset: Positions, k: int) -> tuple[Vectors, Positions]:
    """As `scan`, over the rows in `subset` (ascending) only."""
    if len(queries) >= BATCH:
        return _scan_copies(queries, vectors, subset, k)
    similarities, rows = _nothing(len(queries), k)
    faiss.knn_inner_products_by_idx(  # type: ignore[attr-defined]
        faiss.swig_ptr(queries),
        faiss.swig_ptr(vectors),
        faiss.swig_ptr(subset),
        queries.shape[1],
        len(queries),
        len(vectors),
        len(subset),
        k,
        faiss.swig_ptr(similarities),
        faiss.swig_ptr(rows),
        0,  # all queries share the subset
    )
    return similarities, rows


def _scan_copies(queries: Vectors, vectors: Vectors, subset: Positions, k: int) -> tuple[Vectors, Positions]:
    best = _nothing(len(queries), k)
    block = max(1, _BLOCK_BYTES // (4 * vectors.shape[1]))
    for start in range(0, len(subset), block):
        chosen = subset[start : start + block]
        similarities, rows = scan(queries, vectors[chosen], k)
        best = merge([best, (similarities, np.where(rows < 0, -1, chosen[rows]))], k)
    return best


def merge(parts: list[tuple[Vectors, Positions]], k: int) -> tuple[Vectors, Positions]:
    """The `k` best of several results for the same queries; numbers below 0 mark missing ones."""
    if len(parts) == 1 and parts[0][0].shape[1] == k:
        return parts[0]
    similarities = np.concatenate([part[0] for part in parts], axis=1)
    numbers = np.concatenate([part[1] for part in parts], axis=1)
    similarities = np.where(numbers < 0, -np.inf, similarities)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, axis=1), np.take_along_axis(numbers, order, axis=1)


def _nothing(queries: int, k: int) -> tuple[Vectors, Positions]:
    return np.full((queries, k), -np.inf, np.float32), np.full((queries, k), -1, np.int64)
