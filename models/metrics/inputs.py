"""Checks of vectors and labels (arrays, tensors, lists), and the relevance that labels imply."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.errors import InputError

UNIT_NORM_ERROR = 1e-6  # fp32 normalization leaves norms this close to 1: such vectors are used as they are
ROWS_AT_ONCE = 4096
LARGEST_EXACT_FLOAT32 = 2**24  # integers above it collide when stored as float32
BITS = 62  # labels in one int64 word of a label set

Labels = Sequence[Any] | np.ndarray[Any, Any] | Tensor


def as_unit_vectors(vectors: Any, name: str = "embeddings") -> Tensor:
    """Check embeddings and normalize every row to length one.

    Args:
        vectors: array or tensor (N, dim) of any real type; a tensor stays on its device.
        name: of the vectors in error messages.

    Returns:
        float32 (N, dim), contiguous; not a copy where all lengths are one already. Zero vectors stay zero, so
        that their similarity to everything is 0.

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
        exact = part.double()  # squares of fp32 numbers do not overflow, and rounding happens once
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
    """Check that labels are one for each of `size` items, and return them as integers or strings, exact.

    They may be Python's, numpy's or a tensor; `name` is theirs in error messages.

    Raises:
        InputError: wrong length, or labels that are not reliably distinct (fractional or large floats, None).
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
    """Number the labels of several sets 0, 1, 2, … with common numbers: int64 tensors.

    Raises:
        InputError: one set has integers and another has strings.
    """
    if len({array.dtype.kind in "US" for array in labels}) > 1:
        raise InputError("labels of queries and gallery must be both integers or both strings")
    codes = np.unique(np.concatenate(labels), return_inverse=True)[1]
    parts = np.split(codes.astype(np.int64), np.cumsum([len(array) for array in labels])[:-1])
    return [torch.from_numpy(np.ascontiguousarray(part)) for part in parts]


class Relevance:
    """Which gallery items match which queries: those of the same label, or with a label in common.

    Args:
        queries: int64 (queries, words): the number of a label, or a set of labels as bits.
        gallery: int64 (gallery, words).
        sets: whether they are sets.
        self_index: int64 (queries,), the position of each query in the gallery; None where they are separate.

    Attributes:
        counts: int64 (queries,), number of relevant gallery items of each query, without the query itself.
    """

    def __init__(self, queries: Tensor, gallery: Tensor, *, sets: bool, self_index: Tensor | None) -> None:
        self._words = list(zip(queries.unbind(1), gallery.unbind(1), strict=True))
        self._sets = sets
        if sets:
            rows = torch.arange(len(queries), device=queries.device)
            self.counts = torch.cat([self.match(part).sum(dim=1) for part in torch.split(rows, 256)])
        else:
            numbers = int(max(queries.max(), gallery.max())) + 1
            self.counts = torch.bincount(gallery[:, 0], minlength=numbers)[queries[:, 0]]
        if self_index is not None:
            rows = torch.arange(len(queries), device=queries.device)
            self.counts -= self.match(rows, self_index[:, None]).flatten().long()

    def match(self, rows: Tensor, index: Tensor | None = None) -> Tensor:
        """Bool (B, k): whether gallery item `index[b, j]` is relevant to query `rows[b]`.

        Without `index`, (B, gallery): the relevance of every gallery item.
        """

        def of_word(queries: Tensor, gallery: Tensor) -> Tensor:
            mine, theirs = queries[rows, None], gallery if index is None else gallery[index]
            return (mine & theirs) != 0 if self._sets else mine == theirs

        return reduce(torch.logical_or, (of_word(*word) for word in self._words))


def relevance_of(
    labels: Labels,
    gallery_labels: Labels | None,
    sizes: tuple[int, int],
    *,
    self_index: Tensor | None,
    device: torch.device,
) -> Relevance:
    """The relevance that callers' labels imply, with its codes on a device; arguments as of `Relevance`.

    Queries are the gallery where ``gallery_labels`` is None. ``sizes`` are the expected numbers of both.

    Raises:
        InputError: see `as_codes`.
    """
    sets = _are_label_sets(labels)
    if sets:
        of_queries, of_gallery = _bit_masks(
            labels, labels if gallery_labels is None else gallery_labels, sizes
        )
    else:
        queries = as_codes(labels, sizes[0])
        gallery = queries if gallery_labels is None else as_codes(gallery_labels, sizes[1], "gallery labels")
        of_queries, of_gallery = (codes[:, None] for codes in same_codes(queries, gallery))
    return Relevance(of_queries.to(device), of_gallery.to(device), sets=sets, self_index=self_index)


def _are_label_sets(labels: Any) -> bool:
    """Whether each item has a collection of labels instead of one label."""
    return (
        isinstance(labels, Sequence)
        and not isinstance(labels, str)
        and len(labels) > 0
        and isinstance(labels[0], Collection)
        and not isinstance(labels[0], (str, bytes))
    )


def _bit_masks(queries: Any, gallery: Any, sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Label sets as bits: int64 (items, words)."""
    for name, sets, size in (("labels", queries, sizes[0]), ("gallery labels", gallery, sizes[1])):
        if not _are_label_sets(sets) or len(sets) != size:
            raise InputError(f"{name} must hold one collection of labels for each of the {size} vectors")
    every = dict.fromkeys(label for sets in (queries, gallery) for item in sets for label in item)
    numbers = {label: number for number, label in enumerate(every)}
    words = max(1, -(-len(numbers) // BITS))

    def masks(sets: Any) -> Tensor:
        bits = np.zeros((len(sets), words), dtype=np.int64)
        for row, labels in enumerate(sets):
            for label in labels:
                word, bit = divmod(numbers[label], BITS)
                bits[row, word] |= 1 << bit
        return torch.from_numpy(bits)

    return masks(queries), masks(gallery)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Full fp32 matrix products inside the block: no autocast, no TF32 or bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
