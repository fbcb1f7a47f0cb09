"""Bootstrap intervals over classes: how far a figure would move with other classes from the same source."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 1000


def class_draws(classes: int, resamples: int, seed: int) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
    """Draws classes with replacement.

    Yields:
        For each resample how often each class was drawn: int64 (classes,), whose sum is `classes`.
    """
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(0, classes, classes), minlength=classes)


def intervals(
    values: Mapping[str, Tensor],
    classes: Tensor,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of means.

    Queries of one class are alike, so whole classes are drawn, not queries; an interval over queries would be
    too narrow. With a single class the queries are drawn.

    Args:
        values: metric name to float64 (Q,), one value for each query.
        classes: int64 (Q,) class of each query.
        level: probability that an interval is meant to cover.
        resamples: number of draws.
        seed: of the draws; the same seed gives the same draws for every metric and model.

    Returns:
        Metric name to (low, high).
    """
    codes = np.unique(classes.numpy(), return_inverse=True)[1]
    if codes.max(initial=0) == 0:
        codes = np.arange(len(codes))
    counts = np.bincount(codes)
    names = list(values)
    sums = np.stack([np.bincount(codes, weights=values[name].numpy()) for name in names])
    means = [(sums @ drawn) / (counts @ drawn) for drawn in class_draws(len(counts), resamples, seed)]
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return {name: (float(low[n]), float(high[n])) for n, name in enumerate(names)}


def paired_difference(
    first: Tensor, second: Tensor, classes: Tensor, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean of `first - second` over the same queries, narrower than two separate ones."""
    return intervals({"difference": torch.sub(first, second)}, classes, level=level, seed=seed)["difference"]
