"""R-precision: the share of matches among the R nearest, where R is the number of matches that exist."""

import torch
from torch import Tensor


def compute(hits: Tensor, relevant: Tensor) -> Tensor:
    """Matches among the first R neighbours, divided by R.

    With `hits` [[1, 0, 1, 1]] and R = 3 it is 2/3.

    Args:
        hits: bool (queries, ranks) with at least R ranks, best neighbour first.
        relevant: int64 (queries,) R of each query, at least 1.

    Returns:
        float64 (queries,) in [0, 1].
    """
    rank = torch.arange(hits.shape[1], device=hits.device)
    return (hits & (rank < relevant[:, None])).sum(dim=1).double() / relevant
