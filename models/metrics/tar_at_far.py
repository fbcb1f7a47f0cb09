"""True accept rate at a chosen false accept rate."""

import math

import numpy as np

from models.metrics.roc import Roc

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def operating_point(roc: Roc, far: float) -> int:
    """Position on the curve of the lowest threshold whose false accept rate does not exceed `far`."""
    return int(np.searchsorted(roc.far, far * (1 + 1e-12), side="right")) - 1


def compute(roc: Roc, far: float) -> float:
    """The highest true accept rate whose false accept rate does not exceed `far`.

    Returns:
        A rate, or NaN where there are fewer than 1/`far` different pairs, which cannot show such a rate.
    """
    if roc.different * far < 1 - 1e-9:
        return math.nan
    return float(roc.tar[operating_point(roc, far)])
