"""The per-element work on CUDA, by the kernels that ``torch.nn.SyncBatchNorm`` runs.

They keep float32 statistics of half-precision input and know channels_last. ``cpu.py`` documents each
function.
"""

import torch
from torch import Tensor

from .kernels import Kernels, Statistics


def batch_statistics(x: Tensor, eps: float, epsilon: Tensor) -> Statistics:
    """Mean and deviation of each channel, (C,)."""
    del epsilon
    mean, invstd = torch.batch_norm_stats(x, eps)
    return Statistics(mean, invstd.reciprocal(), invstd)


def normalize(x: Tensor, scale: Tensor, b: Tensor, statistics: Statistics) -> Tensor:
    """(x - mean) * scale + b for each channel."""
    # The kernel computes (x - mean) * invstd * weight + bias: the scale goes in as invstd.
    return torch.batch_norm_elemt(x, None, b, statistics.mean, scale, 0.0)


def gradient_sums(dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel the sums of dy * x_hat and of dy."""
    # The kernel's results for weight and bias are these sums, in the type of the weight that it is given.
    _, _, projection, total = torch.batch_norm_backward_reduce(dy, x, mean, invstd, invstd, False, True, True)
    return projection, total


def input_gradient(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    mean: Tensor,
    invstd: Tensor,
    total: Tensor,
    projection: Tensor,
    values: int,
) -> Tensor:
    """Scale * (dy - total / values - x_hat * projection / values)."""
    # The kernel computes (dy - total / n - (x - mean) * invstd**2 * sum / n) * invstd * weight.
    count = torch.full((1,), values, dtype=torch.int32, device=x.device)
    return torch.batch_norm_backward_elemt(
        dy, x, mean, invstd, scale / invstd, total, projection / invstd, count
    )


CUDA = Kernels(batch_statistics, normalize, gradient_sums, input_gradient)
