"""Verification: are two images of the same class? Rates over listed pairs, or over all pairs of a set."""

from typing import Any

import numpy as np

import models.metrics.auc as auc
import models.metrics.d_prime as d_prime
import models.metrics.eer as eer
import models.metrics.fold_accuracy as fold_accuracy
import models.metrics.roc as roc
import models.metrics.tar_at_far as tar_at_far
from models.metrics.pair_histogram import PairHistogram
from models.metrics.roc import Roc


def pair_similarity(first: Any, second: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Cosine similarity of row n of `first` and row n of `second`, both (pairs, dim), in double precision."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    result: np.ndarray[Any, np.dtype[np.float64]] = (a * b).sum(axis=1) / np.maximum(norms, 1e-300)
    return result


def verification_metrics(similarity: Any, same: Any, folds: Any = None) -> dict[str, float]:
    """Every verification figure of a list of pairs.

    Args:
        similarity: (pairs,) numbers, higher is more alike.
        same: (pairs,) true where both show the same class.
        folds: (pairs,) fold numbers, for the accuracy by LFW's protocol.

    Returns:
        `auc`, `eer`, `d_prime`, `tar@far=0.1` … as far as the pairs can show them, `same_pairs`,
        `different_pairs`; with folds `accuracy` and `accuracy_standard_error`.

    Raises:
        InputError: see `roc.compute` and `fold_accuracy.compute`.
    """
    curve = roc.compute(similarity, same)
    scores, labels = np.asarray(similarity, dtype=np.float64), np.asarray(same).astype(bool)
    found = rates(curve)
    found["d_prime"] = d_prime.compute(
        scores[labels].mean(), scores[~labels].mean(), scores[labels].var(), scores[~labels].var()
    )
    if folds is not None:
        found["accuracy"], found["accuracy_standard_error"] = fold_accuracy.compute(scores, labels, folds)
    return found


def all_pairs_metrics(pairs: PairHistogram) -> dict[str, float]:
    """The same figures over all pairs of a set, to the resolution of the histogram (1e-5 in similarity)."""
    found = rates(pairs.roc())
    (mean_same, variance_same), (mean_different, variance_different) = pairs.moments()
    found["d_prime"] = d_prime.compute(mean_same, mean_different, variance_same, variance_different)
    return found


def rates(curve: Roc) -> dict[str, float]:
    """AUC, EER, TAR at the false accept rates that the number of pairs can show, and the counts of pairs."""
    tars = {f"tar@far={far:g}": tar_at_far.compute(curve, far) for far in tar_at_far.FARS}
    return {
        "auc": auc.compute(curve),
        "eer": eer.compute(curve),
        **{name: tar for name, tar in tars.items() if not np.isnan(tar)},
        "same_pairs": float(curve.same),
        "different_pairs": float(curve.different),
    }
