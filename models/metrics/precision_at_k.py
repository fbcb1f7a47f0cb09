"""Precision@k: the share of matches among the k nearest."""

from torch import Tensor


def compute(hits: Tensor, k: int) -> Tensor:
    """Matches among the first k neighbours, divided by k.

    With fewer than k items in the gallery the divisor is still k, as in torchmetrics.

    Args:
        hits: bool (queries, ranks), best neighbour first.
        k: how many neighbours count.

    Returns:
        float64 (queries,) in [0, 1].
    """
    return hits[:, :k].sum(dim=1).double() / k
