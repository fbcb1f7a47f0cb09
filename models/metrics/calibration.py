"""Thresholds for given false accept rates, with bootstrap intervals over classes."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.errors import InputError
from models.metrics.bootstrap import class_draws, sample_of_classes
from models.metrics.inputs import Labels, as_codes, as_unit_vectors, full_precision, same_codes
from models.metrics.verification import FARS, HIGHEST, LOWEST, PairHistogram, pair_histogram

FALSE_ACCEPTS_NEEDED = 10  # with fewer, a rate cannot be estimated
TAIL_PAIRS = 1_000_000  # the most similar different pairs kept for the bootstrap; larger sets are sampled
SAME_PAIRS = 500_000
EQUAL = 1e-6  # fp32 similarities that differ by less count as equal
LARGE_CLASS = 2000  # items; the pairs of larger classes are sampled
DEEPER = 2.0  # the kept tail covers this multiple of the rate, so that resampled thresholds lie within it
ROWS_AT_ONCE = 256

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Threshold:
    """A calibrated operating point: accept a pair when its cosine similarity reaches `threshold`.

    Attributes:
        far: the target false accept rate.
        threshold: cosine similarity.
        low: lower end of its 95% interval over classes.
        high: upper end.
        tar: fraction of same pairs accepted at `threshold`.
        tar_low: lower end of its interval, with the threshold of each resample.
        tar_high: upper end.
        different_pairs: number of different pairs that it is calibrated on.
    """

    far: float
    threshold: float
    low: float
    high: float
    tar: float
    tar_low: float
    tar_high: float
    different_pairs: int

    def to_dict(self) -> dict[str, float]:
        """The fields as plain numbers."""
        return asdict(self)


@dataclass(frozen=True)
class _Pairs:
    """Similarities, descending for different pairs, and the classes of both items."""

    similarity: Array
    first: Array
    second: Array


def calibrate(
    embeddings: Any, labels: Labels, fars: Sequence[float] = FARS, *, resamples: int = 200, seed: int = 0
) -> list[Threshold]:
    """Find the lowest threshold that keeps each false accept rate over all different pairs of a set.

    The interval is a bootstrap over classes: pairs share items and classes, so an interval over pairs would
    be far too narrow. Calibrate on classes that the model was not trained on.

    Args:
        embeddings: (N, dim) array or tensor.
        labels: (N,) integers or strings.
        fars: rates in (0, 1).
        resamples: number of bootstrap draws.
        seed: of the draws, and of the sample of classes where the set has too many pairs.

    Returns:
        One entry for each rate that the set is large enough to estimate (10 false accepts or more), in order.

    Raises:
        InputError: unusable vectors or labels, fewer than two classes, or no two items of one class.
    """
    if any(not 0 < far < 1 for far in fars):
        raise InputError(f"false accept rates lie between 0 and 1, not {list(fars)}")
    vectors = as_unit_vectors(embeddings)
    codes = same_codes(as_codes(labels, len(vectors)))[0]
    found = []
    histograms: dict[int, PairHistogram] = {}  # by number of items: rates mostly share the whole set
    for far in fars:
        items = sample_of_classes(codes, int(math.sqrt(TAIL_PAIRS / (far * DEEPER / 2))), seed)
        sizes = torch.bincount(codes[items])
        different = int((len(items) ** 2 - int((sizes**2).sum())) // 2)
        if far * different >= FALSE_ACCEPTS_NEEDED:
            chosen, chosen_codes = vectors[items.to(vectors.device)], codes[items]
            if len(items) not in histograms:
                histograms[len(items)] = pair_histogram(chosen, chosen_codes)
            found.append(_calibrate_one(chosen, chosen_codes, histograms[len(items)], far, resamples, seed))
    return found


def _calibrate_one(
    vectors: Tensor, codes: Tensor, histogram: PairHistogram, far: float, resamples: int, seed: int
) -> Threshold:
    codes = torch.unique(codes, return_inverse=True)[1]
    sizes = torch.bincount(codes).numpy().astype(np.float64)
    total = int(histogram.different.sum())
    tail = _different_tail(vectors, codes, _tail_start(histogram.different, far * DEEPER * total))
    same = _same_pairs(vectors, codes, seed)

    allowed = int(far * total * (1 + 1e-12))
    threshold = _lowest_threshold(tail.similarity, np.arange(1, len(tail.similarity) + 1), allowed)
    thresholds, tars = [], []
    for weights in class_draws(len(sizes), resamples, seed):
        # Two copies of one class are not a different pair, hence the subtracted squares.
        weighted = ((weights @ sizes) ** 2 - ((weights * sizes) ** 2).sum()) / 2
        times = weights.astype(np.int32)
        accepted = np.cumsum(times[tail.first] * times[tail.second])
        at = _lowest_threshold(tail.similarity, accepted, far * weighted)
        same_weights = weights[same.first]
        thresholds.append(at)
        tars.append(float(same_weights @ (same.similarity >= at) / max(same_weights.sum(), 1e-12)))
    low, high = np.quantile(thresholds, [0.025, 0.975])
    tar_low, tar_high = np.quantile(tars, [0.025, 0.975])
    return Threshold(
        far=far,
        threshold=threshold,
        low=float(low),
        high=float(high),
        tar=float((same.similarity >= threshold).mean()),
        tar_low=float(tar_low),
        tar_high=float(tar_high),
        different_pairs=total,
    )


def _lowest_threshold(similarity: Array, accepted: Array, allowed: float) -> float:
    """Lowest threshold on the descending similarities that accepts at most `allowed`, counting all equals."""
    if not len(similarity):
        return 1.0
    within = int(np.searchsorted(accepted, allowed, side="right"))
    if within >= len(similarity):
        return float(similarity[-1])
    refused = similarity[within]
    clear = int(np.searchsorted(-similarity, -(refused + EQUAL), side="left"))  # how many are clearly above
    return float((similarity[clear - 1] + refused) / 2 if clear else refused + EQUAL)


def _tail_start(different: Array, count: float) -> float:
    """Lower edge of the highest bins that together hold at least `count` pairs."""
    from_top = different[::-1].cumsum()
    bins = len(different)
    position = min(int(np.searchsorted(from_top, count)), bins - 1)
    width = (HIGHEST - LOWEST) / bins
    return HIGHEST - (position + 1) * width


def _different_tail(vectors: Tensor, codes: Tensor, start: float) -> _Pairs:
    """All different pairs whose similarity is at least `start`, up to rounding."""
    codes = codes.to(vectors.device)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for row in range(0, len(vectors), ROWS_AT_ONCE):
        with full_precision(vectors.device):
            similarity = vectors[row : row + ROWS_AT_ONCE] @ vectors[row:].T
        keep = (similarity >= start).triu(diagonal=1) & (
            codes[row : row + ROWS_AT_ONCE, None] != codes[None, row:]
        )
        first, second = keep.nonzero(as_tuple=True)
        parts.append((similarity[first, second], codes[row + first].int(), codes[row + second].int()))
    values, firsts, seconds = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    order = np.argsort(-values)
    return _Pairs(values[order].astype(np.float64), firsts[order], seconds[order])


def _same_pairs(vectors: Tensor, codes: Tensor, seed: int) -> _Pairs:
    """All pairs of items of one class, or a random sample where there are very many."""
    random = torch.Generator().manual_seed(seed)
    firsts, seconds = [], []
    for members in torch.split(torch.argsort(codes, stable=True), torch.bincount(codes).tolist()):
        size = len(members)
        if size < LARGE_CLASS:
            first, second = torch.triu_indices(size, size, offset=1)
        else:
            first = torch.randint(size, (SAME_PAIRS,), generator=random)
            second = (first + torch.randint(1, size, (SAME_PAIRS,), generator=random)) % size
        firsts.append(members[first])
        seconds.append(members[second])
    first, second = torch.cat(firsts), torch.cat(seconds)
    if not len(first):
        raise InputError("calibration needs two images of one class at least; no class has a second member")
    if len(first) > SAME_PAIRS:
        chosen = torch.randperm(len(first), generator=random)[:SAME_PAIRS]
        first, second = first[chosen], second[chosen]
    similarity = torch.cat(
        [
            (vectors[a.to(vectors.device)] * vectors[b.to(vectors.device)]).sum(dim=1)
            for a, b in zip(torch.split(first, 8192), torch.split(second, 8192), strict=True)
        ]
    )
    classes = codes[first].numpy()
    return _Pairs(similarity.cpu().numpy().astype(np.float64), classes, classes)
