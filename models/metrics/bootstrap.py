"""Draws of whole classes: bootstrap intervals of a metric, and samples where a set has too many pairs."""

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


def sample_of_classes(codes: Tensor, limit: int, seed: int) -> Tensor:
    """Draws whole classes while their items are at most `limit`, two classes at least.

    Args:
        codes: int64 (N,) class of each item.
        limit: number of items wanted at most.
        seed: of the draw.

    Returns:
        int64 positions of the items of the drawn classes; all positions where N is within the limit.
    """
    if len(codes) <= limit:
        return torch.arange(len(codes))
    order = torch.randperm(int(codes.max()) + 1, generator=torch.Generator().manual_seed(seed))
    reached = torch.bincount(codes)[order].cumsum(dim=0)
    chosen = order[: max(2, int((reached <= limit).sum()))]
    return torch.isin(codes, chosen).nonzero().flatten()
