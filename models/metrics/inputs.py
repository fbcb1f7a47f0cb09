"""Turns what callers hand over (arrays, tensors, lists) into checked fp32 vectors and integer label codes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.errors import InputError

UNIT_NORM_ERROR = 1e-6  # fp32 normalization leaves norms this close to 1: such vectors are used as they are
ROWS_AT_ONCE = 4096
LARGEST_EXACT_FLOAT32 = 2**24  # integers above it collide when stored as float32

Labels = Sequence[Any] | np.ndarray[Any, Any] | Tensor


def as_unit_vectors(vectors: Any, name: str = "embeddings") -> Tensor:
    """Checks embeddings and scales every row to length one.

    Args:
        vectors: array or tensor (N, dim) of any real type; kept on its device.
        name: what error messages call it.

    Returns:
        float32 (N, dim), contiguous. Vectors whose length is one already are not copied. A zero vector has no
        direction; it stays zero, so its similarity to everything is 0.

    Raises:
        InputError: not a non-empty matrix of numbers, or a NaN or infinite value (the row is named).
    """
    matrix = _as_matrix(vectors, name)
    _refuse_non_finite(matrix, name)
    norms = torch.cat([part.norm(dim=1) for part in torch.split(matrix, ROWS_AT_ONCE)])
    if bool(((norms - 1).abs() <= UNIT_NORM_ERROR).all()):
        return matrix
    unit = torch.empty_like(matrix)
    for part, out in zip(torch.split(matrix, ROWS_AT_ONCE), torch.split(unit, ROWS_AT_ONCE), strict=True):
        exact = part.double()  # its range holds the squares of every fp32 number, and rounding happens once
        out.copy_(exact / exact.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny))
    return unit


def _as_matrix(vectors: Any, name: str) -> Tensor:
    if not isinstance(vectors, Tensor):
        try:
            array = np.asarray(vectors)
            if array.dtype.kind not in "fiu":
                raise ValueError
        except ValueError as error:  # numpy's own for ragged nesting
            raise InputError(
                f"{name} must be one matrix of numbers whose rows all have the same dimension"
            ) from error
        vectors = torch.from_numpy(np.require(array, np.float32, ["C", "W"]))
    if vectors.ndim != 2 or vectors.shape[0] == 0 or vectors.shape[1] == 0:
        raise InputError(
            f"{name} must have shape (items, dimensions), at least one of each, not {tuple(vectors.shape)}"
        )
    if vectors.is_complex():
        raise InputError(f"{name} must be real numbers, not {vectors.dtype}")
    matrix: Tensor = vectors.detach().to(torch.float32).contiguous()
    return matrix


def _refuse_non_finite(matrix: Tensor, name: str) -> None:
    suspects = (
        torch.cat([part.sum(dim=1) for part in torch.split(matrix, ROWS_AT_ONCE)]).isfinite().logical_not()
    )
    for row in suspects.nonzero().flatten().tolist():  # a finite row may still overflow its sum
        if not bool(matrix[row].isfinite().all()):
            raise InputError(f"{name}: row {row} holds NaN or infinite values; remove it or repair the model")


def as_codes(labels: Labels, size: int, name: str = "labels") -> np.ndarray[Any, Any]:
    """Checks labels and returns them as a numpy array of integers or strings, exact at any magnitude.

    Args:
        labels: (N,) integers (Python, numpy, tensor) or strings.
        size: N that is expected.
        name: what error messages call it.

    Raises:
        InputError: wrong length, or labels that cannot be told apart reliably (floats, None).
    """
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.shape != (size,):
        raise InputError(
            f"{name} must hold one label for each of the {size} vectors, not shape {array.shape}"
        )
    if array.dtype.kind == "O":
        if not all(isinstance(label, str) for label in array):
            raise InputError(f"{name} must be all integers or all strings")
        return array.astype(str)
    if array.dtype.kind == "f":
        exact = array.dtype.itemsize > 4 or bool((np.abs(array) < LARGEST_EXACT_FLOAT32).all())
        if not (exact and np.isfinite(array).all() and (array == np.floor(array)).all()):
            raise InputError(
                f"{name} are floats that do not hold whole numbers exactly; pass integers or strings"
            )
        return array.astype(np.int64)
    if array.dtype.kind not in "iubUS":
        raise InputError(f"{name} must be integers or strings, not {array.dtype}")
    return array


def same_codes(*labels: np.ndarray[Any, Any]) -> list[Tensor]:
    """Numbers the labels of several sets 0, 1, 2, … in one common list.

    Returns:
        One int64 tensor for each set, of its shape.

    Raises:
        InputError: one set has integers and another has strings.
    """
    if len({array.dtype.kind in "US" for array in labels}) > 1:
        raise InputError("labels of queries and gallery must be both integers or both strings")
    codes = np.unique(np.concatenate(labels), return_inverse=True)[1]
    parts = np.split(codes.astype(np.int64), np.cumsum([len(array) for array in labels])[:-1])
    return [torch.from_numpy(np.ascontiguousarray(part)) for part in parts]
