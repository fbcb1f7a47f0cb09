"""Verification (do two images show the same class?): metrics over listed pairs, or all pairs of a set."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.errors import InputError
from models.metrics.inputs import Labels, as_codes, as_unit_vectors, full_precision, same_codes

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
SMALLEST_SPREAD = 1e-12
BINS = 2**18  # of a histogram of similarities
LOWEST, HIGHEST = -1.0, 1.0
ROWS_AT_ONCE = 256

Counts = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Roc:
    """Rates at descending thresholds; a pair is accepted when its similarity reaches the threshold.

    Attributes:
        thresholds: float64 (T,), the first one infinite (nothing accepted).
        far: float64 (T,) fraction of different pairs accepted, ascending from 0 to 1.
        tar: float64 (T,) fraction of same pairs accepted, ascending from 0 to 1.
        same: number of same pairs.
        different: number of different pairs.
    """

    thresholds: Floats
    far: Floats
    tar: Floats
    same: int
    different: int


def roc_curve(similarity: Any, same: Any) -> Roc:
    """The ROC curve with every distinct similarity as a threshold.

    Equals scikit-learn's `roc_curve(same, similarity, drop_intermediate=False)`. Arguments as of
    `verification_metrics`.

    Raises:
        InputError: lengths differ, a similarity is NaN, or all pairs are of one kind.
    """
    scores, labels = np.asarray(similarity, dtype=np.float64), np.asarray(same).astype(bool)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise InputError(f"give one similarity for each pair: shapes are {scores.shape} and {labels.shape}")
    if np.isnan(scores).any():
        raise InputError(f"pair {int(np.isnan(scores).argmax())} has similarity NaN; check its images")
    order = np.argsort(-scores, kind="stable")
    scores, labels = scores[order], labels[order]
    last = np.append(scores[1:] != scores[:-1], True)  # equal similarities are accepted together
    return _roc_from_counts(scores[last], np.cumsum(labels)[last], np.cumsum(~labels)[last])


def _roc_from_counts(thresholds: Any, same: Any, different: Any) -> Roc:
    """The ROC curve from numbers of accepted pairs at descending thresholds; the last ones are the totals."""
    if not len(thresholds) or same[-1] == 0 or different[-1] == 0:
        raise InputError(
            "verification needs at least one pair of the same class and one of different classes"
        )
    return Roc(
        thresholds=np.concatenate([[np.inf], thresholds]),
        far=np.concatenate([[0.0], different / different[-1]]),
        tar=np.concatenate([[0.0], same / same[-1]]),
        same=int(same[-1]),
        different=int(different[-1]),
    )


def equal_error_rate(roc: Roc) -> float:
    """The rate at which false accepts and false rejects are equal, interpolated between two thresholds."""
    gap = roc.far - (1 - roc.tar)  # ascends from -1 to 1
    after = int(np.argmax(gap >= 0))
    before = max(after - 1, 0)
    step = gap[after] - gap[before]
    fraction = -gap[before] / step if step > 0 else 0.0
    return float(roc.far[before] + fraction * (roc.far[after] - roc.far[before]))


def tar_at_far(roc: Roc, far: float) -> float:
    """The highest true accept rate whose false accept rate does not exceed `far`.

    Returns:
        A rate, or NaN with fewer than 1/`far` different pairs, too few to estimate it.
    """
    if roc.different * far < 1 - 1e-9:
        return math.nan
    return float(roc.tar[np.searchsorted(roc.far, far * (1 + 1e-12), side="right") - 1])


def d_prime(
    mean_same: float, mean_different: float, variance_same: float, variance_different: float
) -> float:
    """Distance between the mean similarities of same and different pairs, in standard deviations.

    That is (mean of same - mean of different) / sqrt(mean of the two variances); infinite without variance.
    """
    spread = math.sqrt((variance_same + variance_different) / 2)
    gap = mean_same - mean_different
    if spread < SMALLEST_SPREAD:
        return 0.0 if abs(gap) < SMALLEST_SPREAD else math.copysign(math.inf, gap)
    return gap / spread


def fold_accuracy(similarity: Any, same: Any, folds: Any) -> tuple[float, float]:
    """Accuracy by LFW's protocol (Huang et al., 2007): each fold at the best threshold of all others.

    Arguments as of `verification_metrics`.

    Returns:
        Mean and standard error of the mean over the folds.

    Raises:
        InputError: fewer than two folds, or folds whose complement lacks same or different pairs.
    """
    scores, labels, numbers = np.asarray(similarity, float), np.asarray(same).astype(bool), np.asarray(folds)
    names = np.unique(numbers)
    if len(names) < 2 or numbers.shape != scores.shape:
        raise InputError("fold accuracy needs a fold number for each pair and at least two folds")
    accuracies = []
    for name in names:
        held_out = numbers == name
        curve = roc_curve(scores[~held_out], labels[~held_out])
        right = curve.tar * curve.same + (1 - curve.far) * curve.different
        best = int(np.argmax(right))
        # Halfway to the next lower similarity, for the largest margin on both sides.
        threshold = curve.thresholds[best : best + 2].mean()
        accuracies.append(float(((scores[held_out] >= threshold) == labels[held_out]).mean()))
    return float(np.mean(accuracies)), float(np.std(accuracies, ddof=1) / math.sqrt(len(names)))


@dataclass(frozen=True)
class PairHistogram:
    """Numbers of same and of different pairs, int64 (bins,), by similarity in equal bins over [-1, 1]."""

    same: Counts
    different: Counts

    def roc(self) -> Roc:
        """The ROC curve; thresholds are lower edges of bins.

        Raises:
            InputError: no pair of one of the two kinds.
        """
        lower = np.linspace(LOWEST, HIGHEST, len(self.same) + 1)[:-1][::-1]
        same, different = self.same[::-1], self.different[::-1]
        used = (same + different) > 0
        return _roc_from_counts(lower[used], same.cumsum()[used], different.cumsum()[used])

    def moments(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(mean, variance) of the similarities of same pairs, then of different pairs."""
        edges = np.linspace(LOWEST, HIGHEST, len(self.same) + 1)
        centres = (edges[1:] + edges[:-1]) / 2

        def of(counts: Counts) -> tuple[float, float]:
            mean = float((counts * centres).sum() / counts.sum())
            return mean, float((counts * (centres - mean) ** 2).sum() / counts.sum())

        return of(self.same), of(self.different)


@torch.no_grad()
def pair_histogram(embeddings: Any, labels: Labels) -> PairHistogram:
    """Count every unordered pair of distinct items once, on the device of the embeddings, (N, dim).

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
    """Bins of the pairs of rows [start, stop) with later rows; duplicate pairs go to a spare bin."""
    with full_precision(vectors.device):
        similarity = vectors[start:stop] @ vectors[start:].T
    bins = ((similarity - LOWEST) * (BINS / (HIGHEST - LOWEST))).long().clamp_(0, BINS - 1)
    bins += BINS * (codes[start:stop, None] == codes[None, start:])
    own = bins[:, : stop - start]
    own.masked_fill_(torch.ones_like(own, dtype=torch.bool).tril(), 2 * BINS)
    return bins


def pair_similarity(first: Any, second: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Cosine similarity of row n of `first` and row n of `second`, both (pairs, dim), in double precision."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    result: np.ndarray[Any, np.dtype[np.float64]] = (a * b).sum(axis=1) / np.maximum(norms, 1e-300)
    return result


def verification_metrics(similarity: Any, same: Any, folds: Any = None) -> dict[str, float]:
    """All verification metrics of a list of pairs.

    Args:
        similarity: (pairs,) numbers, higher is more alike.
        same: (pairs,) true where both show the same class.
        folds: (pairs,) fold numbers, for the accuracy by LFW's protocol.

    Returns:
        `auc`, `eer`, `d_prime`, `tar@far=0.1` … for rates that the pairs suffice for, `same_pairs`,
        `different_pairs`; with folds also `accuracy` and `accuracy_standard_error`.

    Raises:
        InputError: see `roc_curve` and `fold_accuracy`.
    """
    curve = roc_curve(similarity, same)
    scores, labels = np.asarray(similarity, dtype=np.float64), np.asarray(same).astype(bool)
    found = _rates(curve)
    found["d_prime"] = d_prime(
        scores[labels].mean(), scores[~labels].mean(), scores[labels].var(), scores[~labels].var()
    )
    if folds is not None:
        found["accuracy"], found["accuracy_standard_error"] = fold_accuracy(scores, labels, folds)
    return found


def all_pairs_metrics(pairs: PairHistogram) -> dict[str, float]:
    """The same metrics over all pairs of a set, to the resolution of the histogram (1e-5 in similarity)."""
    found = _rates(pairs.roc())
    (mean_same, variance_same), (mean_different, variance_different) = pairs.moments()
    found["d_prime"] = d_prime(mean_same, mean_different, variance_same, variance_different)
    return found


def _rates(curve: Roc) -> dict[str, float]:
    """AUC, EER, TAR at the false accept rates that the pairs suffice for, and the numbers of pairs."""
    tars = {f"tar@far={far:g}": tar_at_far(curve, far) for far in FARS}
    return {
        "auc": float(np.trapezoid(curve.tar, curve.far)),  # equal similarities count one half
        "eer": equal_error_rate(curve),
        **{name: tar for name, tar in tars.items() if not np.isnan(tar)},
        "same_pairs": float(curve.same),
        "different_pairs": float(curve.different),
    }
