"""Batch Renormalization in ordinary tensor operations, where the native kernels do not reach.

Compiled code (the compiler fuses these operations), masked input, and devices other than CPU and CUDA
take it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .functions import effective_affine
from .gradient import GradientRule


def _along_channels(vector: Tensor, dimensions: int) -> Tensor:
    """(C,) as (1, C, 1, ...)."""
    return vector.view(1, -1, *[1] * (dimensions - 2))


def _sum(x: Tensor) -> Tensor:
    """Over all but the channels, (C,)."""
    return x.sum([dim for dim in range(x.dim()) if dim != 1])


def batch_statistics(x: Tensor, eps: float, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean and standard deviation (biased, epsilon inside the root) of each channel.

    Args:
        x: (N, C, ...), floating point.
        eps: added to the variance.
        mask: (N, ...) boolean or None.

    Returns:
        Mean and deviation, (C,) each, in float32 or float64; with a mask the number of values a channel,
        a tensor without dimensions, else None.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if mask is None:
        dims = [dim for dim in range(x.dim()) if dim != 1]
        var, mean = torch.var_mean(x, dims, correction=0)
        return mean, (var + eps).sqrt(), None
    inside = mask.unsqueeze(1)
    count = mask.sum().to(x.dtype)
    # Padding may hold anything, also what is not finite: it is replaced, not multiplied by zero.
    mean = _sum(torch.where(inside, x, 0.0)) / count
    centred = torch.where(inside, x - _along_channels(mean, x.dim()), 0.0)
    return mean, (_sum(centred.square()) / count + eps).sqrt(), count


class PlainRenorm(Function):
    """As ``functions.NativeRenorm``, for any device and with a mask; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mask: Tensor | None,
        count: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        std: Tensor,
        r: Tensor,
        d: Tensor,
        rule: GradientRule | None,
    ) -> Tensor:
        """(x - mean) * scale + b in the statistics' type, returned in the input's."""
        ctx.save_for_backward(x, mask, count, weight, mean, std, r, d)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.rule = rule
        scale, b = effective_affine(weight, bias, std.reciprocal(), r, d)
        n = x.dim()
        centred = x.to(mean.dtype) - _along_channels(mean, n)
        return (centred * _along_channels(scale, n) + _along_channels(b, n)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, gamma and beta."""
        x, mask, count, weight, mean, std, r, d = ctx.saved_tensors
        n = x.dim()
        invstd = std.reciprocal()
        w = r if weight is None else r * weight
        dy = dy.to(mean.dtype)
        x_hat = (x.to(mean.dtype) - _along_channels(mean, n)) * _along_channels(invstd, n)
        dw, db = _sum(dy * x_hat), _sum(dy)
        d_weight = torch.addcmul(d * db, r, dw).to(weight.dtype) if weight is not None else None
        d_bias = db.to(ctx.bias_dtype) if ctx.bias_dtype is not None else None
        values = x.numel() // x.shape[1] if count is None else count
        rule = ctx.rule or GradientRule()
        g_mean, g_projection = rule.means(db, dw, values, r, d)
        subtracted = _along_channels(g_mean, n) + x_hat * _along_channels(g_projection, n)
        if mask is not None:
            subtracted = torch.where(mask.unsqueeze(1), subtracted, 0.0)
        dx = (dy - subtracted) * _along_channels(w * invstd, n)
        return dx.to(x.dtype), None, None, d_weight, d_bias, None, None, None, None, None
