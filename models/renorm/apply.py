"""Picks the route: native kernels where they reach, ordinary tensor operations elsewhere."""

import torch
from torch import Tensor

from . import kernels, plain
from .functions import GradientStatistics, NativeRenorm


def _is_native(x: Tensor, mask: Tensor | None) -> bool:
    return mask is None and x.device.type in ("cpu", "cuda") and not torch.compiler.is_compiling()


def batch_statistics(x: Tensor, eps: float, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean, deviation and, with a mask, the number of values of each channel; see ``plain.batch_statistics``.

    Raises:
        ValueError: when a channel has one value, or none.
    """
    if x.numel() // max(x.shape[1], 1) < 2:
        raise ValueError(
            f"one value per channel has no variance (input {tuple(x.shape)}): train on larger batches, or call "
            "eval() or freeze the layer"
        )
    if _is_native(x, mask):
        return *kernels.batch_statistics(x, eps), None
    return plain.batch_statistics(x, eps, mask)


def normalize(
    x: Tensor,
    mask: Tensor | None,
    count: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    std: Tensor,
    r: Tensor,
    d: Tensor,
    gradient: GradientStatistics | None,
) -> Tensor:
    """gamma ((x - mean) / std r + d) + beta with the gradient of Batch Renormalization."""
    if _is_native(x, mask):
        output: Tensor = NativeRenorm.apply(x, weight, bias, mean, std, r, d, gradient)
    else:
        output = plain.PlainRenorm.apply(x, mask, count, weight, bias, mean, std, r, d, gradient)
    return output
