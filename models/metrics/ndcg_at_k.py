"""nDCG@k with binary relevance: matches weigh less the later they come."""

import torch
from torch import Tensor


def compute(hits: Tensor, relevant: Tensor, k: int) -> Tensor:
    """DCG of the first k neighbours, divided by that of a perfect ranking.

    DCG is the sum of 1 / log2(rank + 1) over matches. With `hits` [[0, 1]], R = 1 and k = 2 it is
    1 / log2(3) = 0.63.

    Args:
        hits: bool (queries, ranks), best neighbour first.
        relevant: int64 (queries,) matches that exist for each query, at least 1.
        k: how many neighbours count.

    Returns:
        float64 (queries,) in [0, 1].
    """
    discount = torch.log2(torch.arange(2, k + 2, device=hits.device, dtype=torch.float64)).reciprocal()
    ideal = discount.cumsum(dim=0)[relevant.clamp(max=k) - 1]
    ranks = hits[:, :k]
    return (ranks * discount[: ranks.shape[1]]).sum(dim=1) / ideal
