"""Equal error rate: where false accepts and false rejects are equally frequent."""

import numpy as np

from models.metrics.roc import Roc


def compute(roc: Roc) -> float:
    """The rate at the crossing of FAR and 1 - TAR, on the line between the two nearest thresholds."""
    gap = roc.far - (1 - roc.tar)  # ascends from -1 to 1
    after = int(np.argmax(gap >= 0))
    before = max(after - 1, 0)
    step = gap[after] - gap[before]
    share = -gap[before] / step if step > 0 else 0.0
    return float(roc.far[before] + share * (roc.far[after] - roc.far[before]))
