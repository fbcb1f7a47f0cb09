"""The per-element work on CUDA, by the kernels that ``torch.nn.SyncBatchNorm`` runs.

They keep float32 statistics of half-precision input and know channels_last. ``cpu.py`` documents each
function.
"""

import torch
from torch import Tensor

from .cpu import Statistics


def batch_statistics(x: Tensor, eps: float) -> Statistics:
    """Mean and deviation of each channel, (C,)."""
    mean, invstd = torch.batch_norm_stats(x, eps)
    return Statistics(mean, invstd.reciprocal())


def normalize(x: Tensor, w: Tensor, b: Tensor, statistics: Statistics) -> Tensor:
    """(x - mean) / std * w + b for each channel."""
    return torch.batch_norm_elemt(x, w, b, statistics.mean, statistics.std.reciprocal(), 0.0)


def gradient_sums(dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel the sums of dy * x_hat and of dy."""
    # The kernel's other two results, for weight and bias, are these sums in the type of the weight it is
    # given.
    _, _, projection, total = torch.batch_norm_backward_reduce(dy, x, mean, invstd, invstd, False, True, True)
    return projection, total


def input_gradient(
    dy: Tensor, x: Tensor, w: Tensor, mean: Tensor, invstd: Tensor, g_mean: Tensor, g_projection: Tensor
) -> Tensor:
    """W * invstd * (dy - g_mean - x_hat * g_projection)."""
    # The kernel divides two sums by the number of values: with a number of 1 the means go in as they are.
    one = torch.ones(1, dtype=torch.int32, device=x.device)
    return torch.batch_norm_backward_elemt(dy, x, mean, invstd, w, g_mean, g_projection / invstd, one)
