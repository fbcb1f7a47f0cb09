"""What autograd records of a Batch Renormalization done by native kernels."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import cpu, cuda
from .cpu import Statistics
from .memory_format import like
from .moving import GradientStatistics


def effective_affine(
    weight: Tensor | None, bias: Tensor | None, r: Tensor, d: Tensor
) -> tuple[Tensor, Tensor]:
    """The affine under which batch normalization is Batch Renormalization: (gamma r, beta + gamma d)."""
    if weight is None:
        return r, d if bias is None else d + bias
    w = r * weight
    return w, d * weight if bias is None else torch.addcmul(bias.to(d.dtype), d, weight.to(d.dtype))


class NativeRenorm(Function):
    """y = gamma ((x - mean) / std r + d) + beta with r and d constant under the gradient.

    Twice differentiable, unless the gradient statistics are moving averages: that gradient is no
    function's.
    """

    # One method with ctx: the split into forward and setup_context costs seven times as much a call.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        statistics: Statistics,
        r: Tensor,
        d: Tensor,
        gradient: GradientStatistics | None,
    ) -> Tensor:
        """Normalize by the batch statistics, which the caller has computed without gradient."""
        # The input and vectors of one entry a channel: what batch normalization keeps.
        ctx.save_for_backward(x, weight, statistics.mean, statistics.std, r, d)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.gradient = gradient
        w, b = effective_affine(weight, bias, r, d)
        kernels = cuda if x.is_cuda else cpu
        return kernels.normalize(x, w, b, statistics)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, gamma and beta."""
        x, weight, mean, std, r, d = ctx.saved_tensors
        needs_dx, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        w = r if weight is None else r * weight
        invstd = std.reciprocal()
        if ctx.gradient is None and (torch.is_grad_enabled() or (not x.is_cuda and x.dtype != mean.dtype)):
            # The kernel of batch normalization: it has a derivative, and takes half precision in one pass.
            dx, dw, db = torch.ops.aten.native_batch_norm_backward(
                dy, x, w, None, None, mean, invstd, True, 0.0, [needs_dx, True, True]
            )
            dx = dx if needs_dx else None
        else:
            dx, dw, db = _backward(like(dy, x), x, w, mean, invstd, ctx.gradient, needs_dx)
        d_weight = d_bias = None
        if weight is not None and needs_weight:
            d_weight = torch.addcmul(d * db, r, dw).to(weight.dtype)
        if ctx.bias_dtype is not None and needs_bias:
            d_bias = db.to(ctx.bias_dtype)
        return dx, d_weight, d_bias, None, None, None, None


def _backward(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    mean: Tensor,
    invstd: Tensor,
    gradient: GradientStatistics | None,
    needs_dx: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    if torch.is_grad_enabled():
        raise RuntimeError('gradient_statistics="moving" cannot be differentiated twice; use "batch"')
    kernels = cuda if x.is_cuda else cpu
    dw, db = kernels.gradient_sums(dy, x, mean, invstd)
    values = x.numel() // x.shape[1]
    g_mean, g_projection = db / values, dw / values
    if gradient is not None:
        g_mean, g_projection = gradient.update(g_mean, g_projection)
    dx = kernels.input_gradient(dy, x, w, mean, invstd, g_mean, g_projection) if needs_dx else None
    return dx, dw, db
