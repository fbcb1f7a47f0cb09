"""Recall@k of metric learning: the share of queries with at least one match among their k nearest."""

from torch import Tensor


def compute(hits: Tensor, k: int) -> Tensor:
    """Whether any of the first k neighbours matches.

    Also called R@k, P@1 for k = 1, or Hit@k. With `hits` [[0, 0, 1]]: recall@2 is 0, recall@3 is 1.

    Args:
        hits: bool (queries, ranks), best neighbour first.
        k: how many neighbours count; ranks past the gallery's end count as misses.

    Returns:
        float64 (queries,) of 0 and 1.
    """
    return hits[:, :k].any(dim=1).double()
