"""Whole classes at random, where all items would give too many pairs."""

import torch
from torch import Tensor


def sample_of_classes(codes: Tensor, limit: int, seed: int) -> Tensor:
    """Draws classes while their items are at most `limit`, two classes at least.

    Args:
        codes: int64 (N,) class of each item.
        limit: number of items wanted at most.
        seed: of the draw.

    Returns:
        int64 positions of the items of the drawn classes; all positions where N is within the limit.
    """
    if len(codes) <= limit:
        return torch.arange(len(codes))
    order = torch.randperm(int(codes.max()) + 1, generator=torch.Generator().manual_seed(seed))
    reached = torch.bincount(codes)[order].cumsum(dim=0)
    chosen = order[: max(2, int((reached <= limit).sum()))]
    return torch.isin(codes, chosen).nonzero().flatten()
