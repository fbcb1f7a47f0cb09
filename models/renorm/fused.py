"""What autograd records of a Batch Renormalization done by the fused kernels of ``native``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import native
from .functions import whole_kernel
from .gradient import MovingAverages
from .memory_format import like

_TYPES = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
}

# From the input, gamma, beta and what is added: the output, and vectors that the backward pass needs, (6, C).
Forward = Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]


def takes(x: Tensor, residual: Tensor | None, running_mean: Tensor, weight: Tensor | None) -> bool:
    """Whether the fused kernels are on and know this input: on a CPU, of a type that goes with theirs."""
    return (
        native.enabled()
        and type(x) is Tensor
        and x.is_cpu
        and _TYPES.get(x.dtype) == running_mean.dtype
        and running_mean.is_contiguous()
        and (weight is None or (weight.dtype == running_mean.dtype and weight.is_contiguous()))
        and x.numel() > 0
        and (
            residual is None
            or (type(residual) is Tensor and residual.shape == x.shape and residual.dtype == x.dtype)
        )
    )


def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The output, and what the backward pass needs; ``native/renorm.cpp`` names the arguments."""
    x, weight, bias, residual, *rest = arguments
    residual = residual if residual is None else like(residual, x)
    result: tuple[Tensor, Tensor] = torch.ops.batch_renorm_native.forward.default(
        x, weight, bias, residual, *rest
    )
    return result


class FusedRenorm(Function):
    """y = gamma ((x - mean) / std r + d) + beta, plus what is added, cut at zero if there is a ReLU.

    As ``functions.NativeRenorm``: r and d are constant under the gradient, twice differentiable unless the
    gradient statistics are moving averages.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        relu: bool,
        moving: MovingAverages | None,
        work: Forward,
    ) -> Tensor:
        """One call for everything; ``work`` makes it."""
        y, saved = work(x, weight, bias, residual)
        # What a ReLU alone lets through is found again from x; after an addition it takes the output.
        ctx.save_for_backward(x, weight, saved, y if relu and residual is not None else None)
        ctx.relu, ctx.moving = relu, moving
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, gamma, beta and what was added."""
        x, weight, saved, y = ctx.saved_tensors
        moving = ctx.moving
        needs_dx, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():
            if moving is not None:
                raise RuntimeError(
                    "moving or synchronized gradient statistics cannot be differentiated twice"
                )
            mean, invstd, r, d, scale, shift = saved.unbind()
            if ctx.relu:
                shape = (1, -1, *[1] * (x.dim() - 2))
                before = (x - mean.view(shape)) * scale.view(shape) + shift.view(shape) if y is None else y
                dy = dy.masked_fill(before <= 0, 0)
            dx, dw, d_bias = whole_kernel(dy, x, weight, mean, invstd, r, needs_dx)
            d_weight, d_residual = torch.addcmul(d * d_bias, r, dw), dy
        else:
            averages = (None, None, None, None) if moving is None else moving
            dx, d_weight, d_bias, d_residual = torch.ops.batch_renorm_native.backward.default(
                like(dy, x), x, y, saved, ctx.relu, needs_dx, *averages
            )
            d_residual = dy if y is None else d_residual
        return (
            dx if needs_dx else None,
            d_weight if needs_weight else None,
            d_bias if needs_bias else None,
            d_residual if needs_residual else None,
            None,
            None,
            None,
        )
