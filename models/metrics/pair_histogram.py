"""Similarities of all pairs of a set, counted in fine bins: N²/2 numbers in a few megabytes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import models.metrics.roc as roc
from models.metrics.inputs import Labels, as_codes, as_unit_vectors, same_codes
from models.metrics.precision import full_precision

BINS = 2**18
LOWEST, HIGHEST = -1.0, 1.0
ROWS_AT_ONCE = 256

Counts = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class PairHistogram:
    """Counts of pairs by similarity, in equal bins over [-1, 1].

    Attributes:
        same: int64 (bins,) pairs of one class.
        different: int64 (bins,) pairs of two classes.
    """

    same: Counts
    different: Counts

    def roc(self) -> roc.Roc:
        """The ROC curve; thresholds are lower edges of bins.

        Raises:
            InputError: no pair of one of the two kinds.
        """
        lower = np.linspace(LOWEST, HIGHEST, len(self.same) + 1)[:-1][::-1]
        same, different = self.same[::-1], self.different[::-1]
        used = (same + different) > 0
        return roc.from_counts(lower[used], same.cumsum()[used], different.cumsum()[used])

    def moments(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(mean, variance) of the similarities of same pairs, then of different pairs."""
        edges = np.linspace(LOWEST, HIGHEST, len(self.same) + 1)
        centres = (edges[1:] + edges[:-1]) / 2

        def of(counts: Counts) -> tuple[float, float]:
            mean = float((counts * centres).sum() / counts.sum())
            return mean, float((counts * (centres - mean) ** 2).sum() / counts.sum())

        return of(self.same), of(self.different)


@torch.no_grad()
def compute(embeddings: Any, labels: Labels) -> PairHistogram:
    """Counts every unordered pair of different items once.

    Args:
        embeddings: (N, dim); the computation runs on its device.
        labels: (N,) integers or strings.

    Raises:
        InputError: unusable vectors or labels.
    """
    vectors = as_unit_vectors(embeddings)
    codes = same_codes(as_codes(labels, len(vectors)))[0].to(vectors.device)
    counts = torch.zeros(2 * BINS + 1, dtype=torch.int64, device=vectors.device)
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, len(vectors))
        counts += torch.bincount(_bins(vectors, codes, start, stop).flatten(), minlength=2 * BINS + 1)
    different, same = counts[: 2 * BINS].cpu().numpy().reshape(2, BINS)
    return PairHistogram(same=same, different=different)


def _bins(vectors: Tensor, codes: Tensor, start: int, stop: int) -> Tensor:
    """Bins of the pairs of rows [start, stop) and later rows; pairs seen twice go to a spare bin."""
    with full_precision(vectors.device):
        similarity = vectors[start:stop] @ vectors[start:].T
    bins = ((similarity - LOWEST) * (BINS / (HIGHEST - LOWEST))).long().clamp_(0, BINS - 1)
    bins += BINS * (codes[start:stop, None] == codes[None, start:])
    own = bins[:, : stop - start]
    own.masked_fill_(torch.ones_like(own, dtype=torch.bool).tril(), 2 * BINS)
    return bins
