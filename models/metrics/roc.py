"""The ROC curve of verification: true and false accepts at every threshold."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from models.errors import InputError

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Roc:
    """Rates at descending thresholds; a pair is accepted when its similarity reaches the threshold.

    Attributes:
        thresholds: float64 (T,), the first one infinite (nothing accepted).
        far: float64 (T,) share of different pairs accepted, ascending from 0 to 1.
        tar: float64 (T,) share of same pairs accepted, ascending from 0 to 1.
        same: number of same pairs.
        different: number of different pairs.
    """

    thresholds: Floats
    far: Floats
    tar: Floats
    same: int
    different: int


def compute(similarity: Any, same: Any) -> Roc:
    """The curve through every distinct similarity.

    Equals scikit-learn's `roc_curve(same, similarity, drop_intermediate=False)`.

    Args:
        similarity: (pairs,) numbers.
        same: (pairs,) true where both images show the same class.

    Raises:
        InputError: lengths differ, a NaN, or pairs of one kind only.
    """
    scores, labels = np.asarray(similarity, dtype=np.float64), np.asarray(same).astype(bool)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise InputError(f"give one similarity for each pair: shapes are {scores.shape} and {labels.shape}")
    if np.isnan(scores).any():
        raise InputError(f"pair {int(np.isnan(scores).argmax())} has similarity NaN; check its images")
    order = np.argsort(-scores, kind="stable")
    scores, labels = scores[order], labels[order]
    last = np.append(scores[1:] != scores[:-1], True)  # equal similarities are accepted together
    return from_counts(scores[last], np.cumsum(labels)[last], np.cumsum(~labels)[last])


def from_counts(thresholds: Any, same: Any, different: Any) -> Roc:
    """The curve from accepted counts.

    Args:
        thresholds: float64 (T,) descending.
        same: int64 (T,) same pairs accepted at each; the last entry is their total.
        different: int64 (T,) different pairs accepted at each; likewise.

    Raises:
        InputError: no same pair or no different pair.
    """
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
