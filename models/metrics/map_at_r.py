"""MAP@R (Musgrave et al., "A Metric Learning Reality Check", 2020): average precision over the R nearest."""

import torch
from torch import Tensor


def compute(hits: Tensor, relevant: Tensor) -> Tensor:
    """Sum over ranks i <= R of (precision@i where rank i matches), divided by R.

    With `hits` [[1, 0, 1, 1]] and R = 3 it is (1/1 + 2/3) / 3 = 5/9. Unlike R-precision it rewards matches
    that come early; unlike recall@1 it looks at all of them.

    Args:
        hits: bool (queries, ranks) with at least R ranks, best neighbour first.
        relevant: int64 (queries,) R of each query, at least 1.

    Returns:
        float64 (queries,) in [0, 1].
    """
    rank = torch.arange(hits.shape[1], device=hits.device)
    counted = (hits & (rank < relevant[:, None])).double()
    precision = counted.cumsum(dim=1) / (rank + 1)
    return (precision * counted).sum(dim=1) / relevant
