"""Exact scans of a segment on a CUDA device, where there is one with room for its vectors.

torch is imported only once a device may be used: it takes seconds and hundreds of megabytes.
"""

from __future__ import annotations

import ctypes
import logging
import os
from typing import TYPE_CHECKING

import numpy as np

from serve.store.types import Positions, Vectors

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

# Below this many rows a CPU answers sooner than a copy to the device and back takes.
LEAST_ROWS = 20_000
# Similarities that one product may write, in bytes.
_BLOCK_BYTES = 256 * 2**20
# Share of the device's free memory that one segment may take; the rest is for the network and for products.
_SHARE = 0.5


class DeviceScan:
    """A copy of a segment's vectors on a device. float32 throughout, so that results stay exact.

    Args:
        vectors: (n, dim) float32.
        device: Where the copy lies.
    """

    def __init__(self, vectors: Vectors, device: torch.device) -> None:
        import torch

        self._vectors = torch.from_numpy(np.array(vectors)).to(device)

    def scan(self, queries: Vectors, k: int) -> tuple[Vectors, Positions]:
        """As :func:`serve.store.ann.flat.scan`, for k up to the number of rows."""
        import torch

        device = self._vectors.device
        found = torch.from_numpy(np.ascontiguousarray(queries)).to(device)
        step = max(1, _BLOCK_BYTES // (4 * len(self._vectors)))
        parts = [
            (found[start : start + step] @ self._vectors.T).topk(k) for start in range(0, len(found), step)
        ]
        similarities = torch.cat([part.values for part in parts]).cpu().numpy()
        rows = torch.cat([part.indices for part in parts]).cpu().numpy()
        return similarities, rows


def copy_to_device(vectors: Vectors, device: str = "auto") -> DeviceScan | None:
    """The copy on a CUDA device; None without one, without room, or where it would not pay.

    Args:
        vectors: (n, dim) float32.
        device: "auto" is the current CUDA device; one that is not CUDA gets no copy.
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
