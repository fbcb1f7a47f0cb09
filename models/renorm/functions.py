"""What autograd records of a Batch Renormalization: forward by native kernels, backward by native kernels."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from . import kernels, moving


class GradientStatistics(NamedTuple):
    """Moving averages that replace the two batch statistics in the gradient.

    Attributes:
        mean: of the mean of dy, (C,); changed in place by the backward pass.
        projection: of the mean of dy * x_hat, (C,); changed in place by the backward pass.
        momentum: weight of the batch, a tensor without dimensions.
    """

    mean: Tensor
    projection: Tensor
    momentum: Tensor


def effective_affine(
    weight: Tensor | None, bias: Tensor | None, r: Tensor, d: Tensor
) -> tuple[Tensor, Tensor]:
    """The affine under which batch normalization is Batch Renormalization: (gamma r, beta + gamma d)."""
    if weight is None:
        return r, d if bias is None else d + bias
    w = r * weight
    return w, d * weight if bias is None else torch.addcmul(bias.to(d.dtype), d, weight.to(d.dtype))


class NativeRenorm(Function):
    """y = gamma ((x - mean) / std r + d) + beta with r and d constant; differentiable twice."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        std: Tensor,
        r: Tensor,
        d: Tensor,
        gradient: GradientStatistics | None,
    ) -> Tensor:
        """Normalize by the batch statistics, which the caller has computed without gradient."""
        w, b = effective_affine(weight, bias, r, d)
        return kernels.normalize(x, w, b, mean, std)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the input and vectors of one entry a channel: what batch normalization keeps."""
        x, weight, bias, mean, std, r, d, gradient = inputs
        ctx.save_for_backward(x, weight, mean, std, r, d)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.gradient = gradient

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, gamma and beta."""
        x, weight, mean, std, r, d = ctx.saved_tensors
        needs_dx = ctx.needs_input_grad[0]
        w = r if weight is None else r * weight
        if ctx.gradient is None:
            dx, dw, db = kernels.normalize_backward(dy, x, w, mean, std.reciprocal(), needs_dx)
        else:
            dx, dw, db = moving.normalize_backward(dy, x, w, mean, std.reciprocal(), ctx.gradient, needs_dx)
        d_weight = d_bias = None
        if weight is not None and ctx.needs_input_grad[1]:
            d_weight = torch.addcmul(d * db, r, dw).to(weight.dtype)
        if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
            d_bias = db.to(ctx.bias_dtype)
        return dx, d_weight, d_bias, None, None, None, None, None
