"""Which gallery items count as matches of which queries: same label, or at least one label in common."""

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.errors import InputError
from models.metrics.inputs import Labels, as_codes, same_codes

BITS = 62  # labels in one int64 word of a label set


class Relevance(Protocol):
    """What the neighbour engine asks about matches."""

    counts: Tensor
    """int64 (queries,): relevant gallery items of each query, the query itself not counted."""

    def match(self, rows: Tensor, index: Tensor) -> Tensor:
        """Bool (B, k): whether gallery item `index[b, j]` is relevant to query `rows[b]`."""

    def against_all(self, rows: Tensor) -> Tensor:
        """Bool (B, gallery): relevance of every gallery item to queries `rows`."""


class SameLabel:
    """An item is relevant when its label equals the query's."""

    def __init__(self, queries: Tensor, gallery: Tensor, *, self_index: Tensor | None) -> None:
        """Takes int64 codes (queries,) and (gallery,), and each query's own place in the gallery, if any."""
        size = int(max(queries.max(), gallery.max())) + 1
        self.queries, self.gallery = queries, gallery
        self.counts = torch.bincount(gallery, minlength=size)[queries]
        if self_index is not None:
            self.counts = self.counts - 1

    def match(self, rows: Tensor, index: Tensor) -> Tensor:
        """See `Relevance`."""
        return self.gallery[index] == self.queries[rows, None]

    def against_all(self, rows: Tensor) -> Tensor:
        """See `Relevance`."""
        return self.gallery[None, :] == self.queries[rows, None]


class SharedLabel:
    """An item is relevant when its label set and the query's have an element in common."""

    def __init__(self, queries: Tensor, gallery: Tensor, *, self_index: Tensor | None) -> None:
        """Takes label sets as bit masks, int64 (queries, words) and (gallery, words)."""
        self.queries, self.gallery = queries, gallery
        rows = torch.arange(len(queries), device=queries.device)
        self.counts = torch.cat([self.against_all(part).sum(dim=1) for part in torch.split(rows, 256)])
        if self_index is not None:
            self.counts = self.counts - self.match(rows, self_index[:, None]).flatten().long()

    def match(self, rows: Tensor, index: Tensor) -> Tensor:
        """See `Relevance`."""
        found = torch.zeros_like(index, dtype=torch.bool)
        for word in range(self.gallery.shape[1]):
            found |= (self.gallery[index, word] & self.queries[rows, word, None]) != 0
        return found

    def against_all(self, rows: Tensor) -> Tensor:
        """See `Relevance`."""
        found = torch.zeros(len(rows), len(self.gallery), dtype=torch.bool, device=rows.device)
        for word in range(self.gallery.shape[1]):
            found |= (self.gallery[None, :, word] & self.queries[rows, word, None]) != 0
        return found


def is_label_sets(labels: Any) -> bool:
    """Whether every item carries a collection of labels instead of one label."""
    return (
        isinstance(labels, Sequence)
        and not isinstance(labels, str)
        and len(labels) > 0
        and isinstance(labels[0], Collection)
        and not isinstance(labels[0], (str, bytes))
    )


def relevance_of(
    labels: Labels,
    gallery_labels: Labels | None,
    sizes: tuple[int, int],
    *,
    self_index: Tensor | None,
    device: torch.device,
) -> Relevance:
    """Builds the rule from labels as callers give them.

    Args:
        labels: one label, or one collection of labels, for each query.
        gallery_labels: the same for the gallery; None where the queries are the gallery.
        sizes: numbers of queries and gallery items that are expected.
        self_index: int64 (queries,) place of each query in the gallery, None where they are apart.
        device: where the codes shall lie.

    Raises:
        InputError: see `as_codes`.
    """
    if is_label_sets(labels):
        masks = _bit_masks(labels, labels if gallery_labels is None else gallery_labels, sizes)
        return SharedLabel(masks[0].to(device), masks[1].to(device), self_index=self_index)
    queries = as_codes(labels, sizes[0])
    gallery = queries if gallery_labels is None else as_codes(gallery_labels, sizes[1], "gallery labels")
    query_codes, gallery_codes = same_codes(queries, gallery)
    return SameLabel(query_codes.to(device), gallery_codes.to(device), self_index=self_index)


def _bit_masks(queries: Any, gallery: Any, sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    for name, sets, size in (("labels", queries, sizes[0]), ("gallery labels", gallery, sizes[1])):
        if not is_label_sets(sets) or len(sets) != size:
            raise InputError(f"{name} must hold one collection of labels for each of the {size} vectors")
    numbers = {
        label: n
        for n, label in enumerate(dict.fromkeys(x for sets in (queries, gallery) for s in sets for x in s))
    }
    words = max(1, -(-len(numbers) // BITS))

    def masks(sets: Any) -> Tensor:
        bits = np.zeros((len(sets), words), dtype=np.int64)
        for row, labels in enumerate(sets):
            for label in labels:
                word, bit = divmod(numbers[label], BITS)
                bits[row, word] |= 1 << bit
        return torch.from_numpy(bits)

    return masks(queries), masks(gallery)
