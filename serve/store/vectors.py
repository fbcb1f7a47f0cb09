"""Checks and L2-normalizes vectors on their way into a store or into a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from serve.store.protocol import DimensionMismatch, StoreError, Vectors

# Between these, a float32 sum of squares has neither lost digits to underflow nor overflowed.
_TINY, _HUGE = 1e-20, 1e30


def unit_rows(vectors: Any, dim: int | None, what: str = "vector") -> Vectors:
    """Vectors as L2-normalized rows.

    Args:
        vectors: (dim,) or (n, dim) numbers, or a sequence of n such vectors.
        dim: Length that each must have; None takes any.
        what: How an error message calls them.

    Returns:
        (n, dim) float32, C-contiguous, a new array unless the input already is all that.

    Raises:
        DimensionMismatch: A vector has another length.
        StoreError: One is zero, not finite or not numeric.
    """
    if isinstance(vectors, np.ndarray) and vectors.shape == (dim,) and vectors.dtype == np.float32:
        square = float(np.vdot(vectors, vectors))  # unlike other products it warns of nothing
        if _TINY < square < _HUGE:  # the common query, in a third of the time; what is beyond is judged below
            return np.divide(vectors, math.sqrt(square), dtype=np.float32)[np.newaxis]
    try:
        with np.errstate(over="ignore"):  # what is beyond float32 is refused below
            rows = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        _name_the_odd_one(vectors, dim, what)
        raise StoreError(f"A {what} is not a list of numbers; give {dim or 'some'} numbers each") from None
    if rows.ndim == 1:
        rows = rows[np.newaxis]
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise StoreError(f"The {what}s have shape {rows.shape}; give one row of numbers each")
    if dim is not None and rows.shape[1] != dim:
        raise DimensionMismatch(f"A {what} has {rows.shape[1]} numbers, the collection takes {dim}")
    # In float64, squares of tiny or huge float32 numbers neither vanish nor overflow.
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    odd = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(odd):
        which = f"The {what} at position {odd[0]}" if len(rows) > 1 else f"The {what}"
        wrong = "is zero: no direction" if norms[odd[0]] == 0 else "holds NaN or an infinite number"
        raise StoreError(f"{which} {wrong}")
    return np.ascontiguousarray(rows / norms[:, np.newaxis], dtype=np.float32)


def _name_the_odd_one(vectors: Any, dim: int | None, what: str) -> None:
    """Raises the precise error where rows differ in length."""
    if not isinstance(vectors, Sequence):
        return
    for position, row in enumerate(vectors):
        length = len(row) if hasattr(row, "__len__") else None
        if dim is not None and length is not None and length != dim:
            raise DimensionMismatch(
                f"The {what} at position {position} has {length} numbers, the collection takes {dim}"
            )
