"""What autograd records of a Batch Renormalization done by native kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .cpu import CPU, prefers_whole_kernel
from .cuda import CUDA
from .gradient import GradientRule
from .kernels import Statistics
from .memory_format import like

_kernel = torch.ops.aten.native_batch_norm_backward.default

# From the input: its statistics, r, d, and where the gradient's statistics come from.
Prepare = Callable[[Tensor], tuple[Statistics, Tensor, Tensor, GradientRule | None]]


def effective_affine(
    weight: Tensor | None, bias: Tensor | None, invstd: Tensor, r: Tensor, d: Tensor
) -> tuple[Tensor, Tensor]:
    """What makes y = (x - mean) * scale + b of the layer: gamma r / std and beta + gamma d, (C,) each."""
    scale = r * invstd
    if weight is None:
        return scale, d if bias is None else d + bias
    if weight.dtype != d.dtype:
        weight, bias = weight.to(d.dtype), bias if bias is None else bias.to(d.dtype)
    return scale.mul_(weight), d * weight if bias is None else torch.addcmul(bias, d, weight)


class NativeRenorm(Function):
    """y = gamma ((x - mean) / std r + d) + beta with r and d constant under the gradient.

    Twice differentiable, unless the gradient statistics are moving averages: that gradient is no
    function's.
    """

    # One method with ctx: the split into forward and setup_context costs seven times as much a call. What
    # needs no gradient is prepared inside, where none is recorded.
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, prepare: Prepare) -> Tensor:
        """Normalize by the batch statistics and correct."""
        statistics, r, d, rule = prepare(x)
        invstd = statistics.invstd
        scale, b = effective_affine(weight, bias, invstd, r, d)
        # The input and vectors of one entry a channel: what batch normalization keeps.
        ctx.save_for_backward(x, weight, statistics.mean, invstd, r, d, scale)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.rule = rule
        return (CUDA if x.is_cuda else CPU).normalize(x, scale, b, statistics)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, gamma and beta."""
        x, weight, mean, invstd, r, d, scale = ctx.saved_tensors
        needs_dx, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        twice = torch.is_grad_enabled()
        if twice and ctx.rule is not None:
            raise RuntimeError("moving or synchronized gradient statistics cannot be differentiated twice")
        if twice or (ctx.rule is None and not x.is_cuda and prefers_whole_kernel(x)):
            dx, dw, db = whole_kernel(dy, x, weight, mean, invstd, r, needs_dx)
        else:
            dx, dw, db = _backward(like(dy, x), x, scale, mean, invstd, r, d, ctx.rule, needs_dx)
        d_weight = d_bias = None
        if weight is not None and needs_weight:
            d_weight = torch.addcmul(d * db, r, dw)
            if weight.dtype != d_weight.dtype:
                d_weight = d_weight.to(weight.dtype)
        if ctx.bias_dtype is not None and needs_bias:
            d_bias = db if ctx.bias_dtype == db.dtype else db.to(ctx.bias_dtype)
        return (dx if needs_dx else None), d_weight, d_bias, None


def whole_kernel(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor, r: Tensor, needs_dx: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Batch normalization's own backward kernel, which has a derivative: the gradient of x, and the sums of
    dy * x_hat and of dy.
    """
    w = r if weight is None else r * weight
    result: tuple[Tensor | None, Tensor, Tensor]
    result = _kernel(dy, x, w, None, None, mean, invstd, True, 0.0, [needs_dx, True, True])
    return result


def _backward(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    mean: Tensor,
    invstd: Tensor,
    r: Tensor,
    d: Tensor,
    rule: GradientRule | None,
    needs_dx: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    kernels = CUDA if x.is_cuda else CPU
    dw, db = kernels.gradient_sums(dy, x, mean, invstd)
    total, projection, values = db, dw, x.numel() // x.shape[1]
    if rule is not None:  # before the question of dx: other processes wait for this one's sums
        (total, projection), values = rule.means(db, dw, values, r, d), 1
    if not needs_dx:
        return None, dw, db
    return kernels.input_gradient(dy, x, scale, mean, invstd, total, projection, values), dw, db
