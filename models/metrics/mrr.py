"""Mean reciprocal rank: one over the rank of the first match."""

from torch import Tensor


def compute(first: Tensor) -> Tensor:
    """Reciprocal of the first match's rank in the whole gallery.

    Args:
        first: int64 (queries,) rank of the first match, 1 for the nearest neighbour.

    Returns:
        float64 (queries,) in (0, 1].
    """
    return first.double().reciprocal()
