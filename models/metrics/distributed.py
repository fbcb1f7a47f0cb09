"""Evaluation on several processes: who computes what, and how the parts become one whole on every rank."""

import torch
from torch import Tensor, distributed

from models.errors import InputError


def my_slice(size: int, depths: Tensor) -> Tensor:
    """This rank's share of the queries: disjoint, complete, and balanced in depth.

    Args:
        size: number of queries.
        depths: int64 (size,) cost of each.

    Returns:
        int64 positions, of different lengths on different ranks: nothing is padded, so nothing counts twice.
    """
    if not distributed.is_initialized():
        return torch.arange(size, device=depths.device)
    order = torch.argsort(depths, descending=True, stable=True)
    return order[distributed.get_rank() :: distributed.get_world_size()]


def merge_slices(values: Tensor) -> None:
    """Adds up tensors that are zero outside each rank's own slice, in place: exact, since x + 0 = x."""
    if distributed.is_initialized():
        distributed.all_reduce(values)


def gather_by_index(embeddings: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Collects what the ranks embedded into one set, each item once.

    A distributed sampler that pads repeats items; a repeated item would be its own nearest neighbour.
    Items are told apart by `index`, tensors are gathered, nothing is pickled.

    Args:
        embeddings: (n, dim) of this rank; n may differ between ranks.
        labels: int64 (n,).
        index: int64 (n,) number of each item in the data set.

    Returns:
        Embeddings (N, dim), labels (N,) and index (N,) of all ranks, ascending in index, on every rank.

    Raises:
        InputError: the three differ in length.
    """
    if not len(embeddings) == len(labels) == len(index):
        raise InputError(
            f"lengths differ: {len(embeddings)} embeddings, {len(labels)} labels, {len(index)} indices"
        )
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        embeddings, labels, index = (_gather(tensor) for tensor in (embeddings, labels, index))
    index, order = index.sort(stable=True)
    first = torch.ones_like(index, dtype=torch.bool)
    first[1:] = index[1:] != index[:-1]
    order = order[first]
    return embeddings[order], labels[order], index[first]


def _gather(tensor: Tensor) -> Tensor:
    """Concatenates tensors whose first dimensions differ between ranks."""
    size = torch.tensor([len(tensor)], device=tensor.device)
    sizes = [torch.zeros_like(size) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, size)
    longest = max(int(s) for s in sizes)
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[: int(s)] for part, s in zip(parts, sizes, strict=True)])
