"""Bootstrap over classes: intervals of metrics, and samples of classes where a set has too many pairs."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 1000


def class_draws(classes: int, resamples: int, seed: int) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
    """For each resample, how often each class was drawn with replacement: int64 (classes,)."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(0, classes, classes), minlength=classes)


def intervals(
    values: Mapping[str, Tensor], classes: Tensor, *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95% percentile bootstrap intervals of means.

    Queries of one class are correlated, so whole classes are resampled; resampling queries would make the
    intervals too narrow. With a single class the queries are resampled.

    Args:
        values: metric name to float64 (Q,), one value for each query.
        classes: int64 (Q,), the class of each query.
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
    means = [(sums @ drawn) / (counts @ drawn) for drawn in class_draws(len(counts), RESAMPLES, seed)]
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return {name: (float(low[n]), float(high[n])) for n, name in enumerate(names)}


def sample_of_classes(codes: Tensor, limit: int, seed: int) -> Tensor:
    """Positions, int64, of the items of a random sample of whole classes: at most `limit`, or two classes.

    All positions where the classes of the items, `codes` int64 (N,), are within the limit.
    """
    if len(codes) <= limit:
        return torch.arange(len(codes))
    order = torch.randperm(int(codes.max()) + 1, generator=torch.Generator().manual_seed(seed))
    reached = torch.bincount(codes)[order].cumsum(dim=0)
    chosen = order[: max(2, int((reached <= limit).sum()))]
    return torch.isin(codes, chosen).nonzero().flatten()
