"""Picks the route: native kernels where they reach, ordinary tensor operations elsewhere."""

import torch
from torch import Tensor

from . import cpu, cuda, plain
from .cpu import Statistics
from .functions import NativeRenorm
from .memory_format import as_dense
from .moving import GradientStatistics


def is_native(x: Tensor, mask: Tensor | None) -> bool:
    """Whether native kernels do the work: on a CPU or CUDA, without a mask, outside compiled code."""
    return mask is None and x.device.type in ("cpu", "cuda") and not torch.compiler.is_compiling()


def check_values(x: Tensor) -> None:
    """Raise where no variance exists.

    Raises:
        ValueError: when a channel has one value, or none.
    """
    if x.numel() // max(x.shape[1], 1) < 2:
        raise ValueError(
            f"one value per channel has no variance (input {tuple(x.shape)}): train on larger batches, "
            "or call eval() or freeze the layer"
        )


def prepare(x: Tensor, mask: Tensor | None) -> Tensor:
    """The input as the route wants it: dense for the native kernels, as it is for the others."""
    return as_dense(x) if is_native(x, mask) else x


def batch_statistics(x: Tensor, eps: float, mask: Tensor | None) -> tuple[Statistics, Tensor | None]:
    """Mean and deviation and, with a mask, the number of values of each channel."""
    if is_native(x, mask):
        return (cuda if x.is_cuda else cpu).batch_statistics(x, eps), None
    mean, std, count = plain.batch_statistics(x, eps, mask)
    return Statistics(mean, std), count


def normalize(
    x: Tensor,
    mask: Tensor | None,
    count: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Statistics,
    r: Tensor,
    d: Tensor,
    gradient: GradientStatistics | None,
) -> Tensor:
    """Y = gamma ((x - mean) / std r + d) + beta with the gradient of Batch Renormalization."""
    output: Tensor
    if is_native(x, mask):
        output = NativeRenorm.apply(x, weight, bias, statistics, r, d, gradient)
    else:
        mean, std = statistics.mean, statistics.std
        output = plain.PlainRenorm.apply(x, mask, count, weight, bias, mean, std, r, d, gradient)
    return output
