"""Gathering rows from all processes: with gradients for training, without for evaluation."""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from models.errors import InputError


def world_size() -> int:
    """Number of processes in the default group; 1 where there is none."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate (N_rank, ...) of all ranks in rank order, without gradients; ranks may differ in N.

    Every rank must call it, with the same dtype and trailing shape, and gets the same result.
    """
    if world_size() == 1:
        return rows.detach()
    return torch.cat(_gather(rows))


def gather_by_index(embeddings: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gather the embeddings of all ranks, each item once, ascending in its index, on every rank.

    A padded distributed sampler repeats items, and a repeated item would be its own nearest neighbour: items
    with the same `index` are the same.

    Args:
        embeddings: (n, dim) of this rank; n may differ between ranks.
        labels: int64 (n,).
        index: int64 (n,) number of each item in the data set.

    Raises:
        InputError: the three differ in length.
    """
    if not len(embeddings) == len(labels) == len(index):
        raise InputError(
            f"lengths differ: {len(embeddings)} embeddings, {len(labels)} labels, {len(index)} indices"
        )
    embeddings, labels, index = (gather_rows(tensor) for tensor in (embeddings, labels, index))
    index, order = index.sort(stable=True)
    first = torch.ones_like(index, dtype=torch.bool)
    first[1:] = index[1:] != index[:-1]
    order = order[first]
    return embeddings[order], labels[order], index[first]


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Concatenate (N_rank, ...) of all ranks in rank order, with gradients, so that a loss can span them.

    Each rank then computes the same loss over the global batch. A rank's own rows get the sum of the
    gradients over ranks, so that DistributedDataParallel's average is the gradient of that one loss.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def _gather(rows: Tensor) -> list[Tensor]:
    """Each rank's rows, without gradients; short parts are padded, because collectives need equal shapes."""
    mine = torch.tensor([len(rows)], device=rows.device)
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    distributed.all_gather(everyone, mine)
    lengths = [int(length) for length in everyone]
    padded = rows.detach().new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in lengths]
    distributed.all_gather(parts, padded)
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = _gather(rows)
        ctx.start = sum(len(part) for part in parts[: distributed.get_rank()])
        ctx.length = len(rows)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.length]
