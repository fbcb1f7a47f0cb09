"""Exact inner-product search over rows of an array: on the CPU with FAISS, on a CUDA device with torch.

On the CPU the arrays may be memory-mapped files: only a batched scan of a subset copies them, in blocks.
torch is imported only once a device may be used: it takes seconds and hundreds of megabytes.
"""

from __future__ import annotations

import ctypes
import logging
import os
from typing import TYPE_CHECKING

import faiss
import numpy as np

from serve.store.types import Positions, Vectors

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

# From this many queries on, a matrix product beats one scan per query (measured at 128 and 512 dimensions).
BATCH = 8
# Rows that a batched subset scan copies at a time.
_BLOCK_BYTES = 16 * 2**20
# Below this many rows a CPU answers sooner than a copy to the device and back takes.
LEAST_ROWS = 20_000
# Bytes of similarities that one product on a device may write.
_PRODUCT_BYTES = 256 * 2**20
# Share of the device's free memory that one segment may take; the rest is for the network and for products.
_SHARE = 0.5


def use_threads(threads: int) -> None:
    """Sets how many OpenMP threads FAISS uses when called from this thread; other threads keep theirs."""
    faiss.omp_set_num_threads(threads)


def scan(queries: Vectors, vectors: Vectors, k: int) -> tuple[Vectors, Positions]:
    """The `k` best rows of each query: similarities (n, k) descending; row numbers, −1 where there are fewer.

    FAISS uses a matrix product unless `queries · dim < threshold`. Its default threshold makes batches 3 to 6
    times slower; one that suits batches makes single queries slow.
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


class DeviceScan:
    """A copy of a segment's vectors on a device. float32 throughout, so that results stay exact."""

    def __init__(self, vectors: Vectors, device: torch.device) -> None:
        import torch

        self._vectors = torch.from_numpy(np.array(vectors)).to(device)

    def scan(self, queries: Vectors, k: int) -> tuple[Vectors, Positions]:
        """As `scan`, for k up to the number of rows."""
        import torch

        device = self._vectors.device
        found = torch.from_numpy(np.ascontiguousarray(queries)).to(device)
        step = max(1, _PRODUCT_BYTES // (4 * len(self._vectors)))
        parts = [
            (found[start : start + step] @ self._vectors.T).topk(k) for start in range(0, len(found), step)
        ]
        similarities = torch.cat([part.values for part in parts]).cpu().numpy()
        rows = torch.cat([part.indices for part in parts]).cpu().numpy()
        return similarities, rows


def copy_to_device(vectors: Vectors, device: str = "auto") -> DeviceScan | None:
    """The copy on a CUDA device ("auto" is the current one).

    None if there is no such device, it lacks the memory, or the rows are too few.
    """
    if device == "cpu" or len(vectors) < LEAST_ROWS or (device == "auto" and not _has_driver()):
        return None
    import torch

    wanted = torch.device("cuda" if device == "auto" else device)
    if wanted.type != "cuda" or not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info(wanted)
    if vectors.nbytes > _SHARE * free:
        _log.warning("a segment of %d MiB does not fit the GPU; the CPU searches it", vectors.nbytes // 2**20)
        return None
    return DeviceScan(vectors, wanted)


def _has_driver() -> bool:
    """Whether this machine has NVIDIA's driver, without which torch finds no CUDA device."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True
