"""Intervals over seeds: of a paired difference, and of the fraction of a loss that is recovered."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% confidence interval, whose ends are infinite if the data do not bound it.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
        seeds: number of pairs; with one pair the ends are infinite.
    """

    value: float
    low: float
    high: float
    seeds: int


def paired_difference(one: Sequence[float], other: Sequence[float]) -> Interval:
    """Mean of one − other over seeds, with Student's t interval.

    Args:
        one: a value for each seed.
        other: of another variant, for the same seeds in the same order.
    """
    differences = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    mean, count = float(differences.mean()), len(differences)
    if count < 2:
        return Interval(mean, -math.inf, math.inf, count)
    half = _quantile(count) * float(differences.std(ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def recovered_fraction(better: Sequence[float], worse: Sequence[float], of: Sequence[float]) -> Interval:
    """(of − worse) / (better − worse) as a ratio of means over seeds, with Fieller's interval.

    The interval contains every fraction s for which of − worse − s (better − worse) does not differ from zero
    by the t test. It is unbounded if the loss itself does not differ from zero. Source: Fieller, J. R. Stat.
    Soc. B 16 (1954) 175.

    Args:
        better: a value for each seed, of the variant without the loss.
        worse: of the variant with it.
        of: of the variant that may recover it.
    """
    reached, best, low = (np.asarray(v, dtype=np.float64) for v in (of, better, worse))
    gain, loss = reached - low, best - low
    count = len(gain)
    if not loss.mean():
        return Interval(math.nan, -math.inf, math.inf, count)
    fraction = float(gain.mean() / loss.mean())
    if count < 2:
        return Interval(fraction, -math.inf, math.inf, count)
    covariance = np.cov(gain, loss, ddof=1) * _quantile(count) ** 2 / count
    a = loss.mean() ** 2 - covariance[1, 1]
    b = gain.mean() * loss.mean() - covariance[0, 1]
    c = gain.mean() ** 2 - covariance[0, 0]
    root = b * b - a * c
    if a <= 0 or root < 0:
        return Interval(fraction, -math.inf, math.inf, count)
    return Interval(fraction, float((b - math.sqrt(root)) / a), float((b + math.sqrt(root)) / a), count)


def _quantile(count: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, count - 1))
