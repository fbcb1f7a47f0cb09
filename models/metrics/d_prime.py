"""d′: how far the similarities of same and different pairs lie apart, in standard deviations."""

import math

SMALLEST_SPREAD = 1e-12


def compute(
    mean_same: float, mean_different: float, variance_same: float, variance_different: float
) -> float:
    """(mean of same - mean of different) / sqrt of the mean of the two variances; infinite without spread."""
    spread = math.sqrt((variance_same + variance_different) / 2)
    gap = mean_same - mean_different
    if spread < SMALLEST_SPREAD:
        return 0.0 if abs(gap) < SMALLEST_SPREAD else math.copysign(math.inf, gap)
    return gap / spread
