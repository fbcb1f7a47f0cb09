"""Area under the ROC curve: the chance that a same pair is more similar than a different one."""

import numpy as np

from models.metrics.roc import Roc


def compute(roc: Roc) -> float:
    """Area by trapezoids; equal similarities count one half."""
    return float(np.trapezoid(roc.tar, roc.far))
