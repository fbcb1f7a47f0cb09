"""Verification accuracy over folds by LFW's protocol (Huang et al., 2007): each fold is held out once."""

import math
from typing import Any

import numpy as np

import models.metrics.roc as roc
from models.errors import InputError


def compute(similarity: Any, same: Any, folds: Any) -> tuple[float, float]:
    """Mean accuracy over folds, each at the threshold that is best on all others, and its standard error.

    Args:
        similarity: (pairs,) numbers.
        same: (pairs,) true where both images show the same class.
        folds: (pairs,) number of each pair's fold.

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
        curve = roc.compute(scores[~held_out], labels[~held_out])
        right = curve.tar * curve.same + (1 - curve.far) * curve.different
        best = int(np.argmax(right))
        # Halfway to the next lower similarity: the largest margin on both sides.
        threshold = curve.thresholds[best : best + 2].mean()
        accuracies.append(float(((scores[held_out] >= threshold) == labels[held_out]).mean()))
    return float(np.mean(accuracies)), float(np.std(accuracies, ddof=1) / math.sqrt(len(names)))
