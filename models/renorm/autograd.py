"""What autograd records of a Batch Renormalization, by torch's operations or by the kernels of ``native``.

y = gamma ((x - mean) / std r + d) + beta, with r and d constant under the gradient. Twice differentiable with
the batch's own gradient statistics.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from . import native
from .gradient import GradientRule, MovingMoments
from .statistics import along_channels, has_kernels

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_NOT_TWICE = "only the batch's own gradient statistics, without a mask, can be differentiated twice"


class TorchRenorm(Function):
    """By torch's batch normalization kernels; compiled, and on other devices, by ordinary operations."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mask: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        std: Tensor,
        r: Tensor,
        d: Tensor,
        rule: GradientRule | None,
    ) -> Tensor:
        """Normalize by known statistics and correction; ``rule`` is None for the paper's gradient."""
        scale, shift = r / std, d  # y = (x - mean) * scale + shift
        if weight is not None:
            scale.mul_(weight)
            shift = d * weight if bias is None else torch.addcmul(bias, d, weight)
        elif bias is not None:
            shift = d + bias
        ctx.save_for_backward(x, mask, weight, mean, std, r, d)
        ctx.bias_dtype, ctx.rule = None if bias is None else bias.dtype, rule
        if not has_kernels(x):
            centred = x.to(mean.dtype) - along_channels(mean, x)
            return (centred * along_channels(scale, x) + along_channels(shift, x)).to(x.dtype)
        if x.is_cuda:  # it computes (x - mean) * invstd * weight + bias: the scale goes in as invstd
            return torch.batch_norm_elemt(x, None, shift, mean, scale, 0.0)
        return torch.native_batch_norm(x, scale, shift, mean, torch.ones_like(mean), False, 0.0, 0.0)[0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, gamma and beta."""
        x, mask, weight, mean, std, r, d = ctx.saved_tensors
        needs_dx, _, needs_weight, needs_bias = ctx.needs_input_grad[:4]
        invstd = std.reciprocal()
        w = r if weight is None else r * weight
        papers = ctx.rule is None and has_kernels(x)
        dx, projection, total = _batch_norm_backward(dy, x, w, mean, invstd, papers and needs_dx)
        if not papers:
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                raise RuntimeError(_NOT_TWICE)
            rule, values = ctx.rule or GradientRule(), x.numel() // x.shape[1]
            # Before the question of dx: other processes wait for this one's sums.
            constant, slope = rule.means(total, projection, values, r, d)
            dx = _input_gradient(dy, x, mask, w, mean, invstd, constant, slope) if needs_dx else None
        d_weight = d_bias = None
        if weight is not None and needs_weight:
            d_weight = torch.addcmul(d * total, r, projection).to(weight.dtype)
        if ctx.bias_dtype is not None and needs_bias:
            d_bias = total.to(ctx.bias_dtype)
        return dx, None, d_weight, d_bias, None, None, None, None, None


def _batch_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, invstd: Tensor, needs_dx: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Batch normalization's own: the gradient of x, and the sums of dy * x_hat and of dy, (C,) each."""
    if has_kernels(x):
        kernel: Any = torch.ops.aten.native_batch_norm_backward.default
        dx, projection, total = kernel(
            dy, x, weight, None, None, mean, invstd, True, 0.0, [needs_dx, True, True]
        )
        return dx if needs_dx else None, projection, total
    over = [dim for dim in range(x.dim()) if dim != 1]
    x_hat = (x.to(mean.dtype) - along_channels(mean, x)) * along_channels(invstd, x)
    return None, (dy * x_hat).sum(over), dy.to(mean.dtype).sum(over)


def _input_gradient(
    dy: Tensor,
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    invstd: Tensor,
    constant: Tensor,
    slope: Tensor,
) -> Tensor:
    """(dy - constant - x_hat * slope) * weight * invstd; of padding, nothing is subtracted."""
    if x.is_cuda and mask is None and has_kernels(x):
        # It computes (dy - total / n - (x - mean) * invstd**2 * sum / n) * invstd * weight, here with n = 1.
        one = torch.ones(1, dtype=torch.int32, device=x.device)
        args = (mean, invstd, weight, constant, slope / invstd, one)
        return torch.batch_norm_backward_elemt(_like(dy, x), x, *args)
    centred = x.to(mean.dtype) - along_channels(mean, x)
    subtracted = along_channels(constant, x) + centred * along_channels(slope * invstd, x)
    if mask is not None:
        subtracted = torch.where(mask.unsqueeze(1), subtracted, 0.0)
    return ((dy - subtracted) * along_channels(weight * invstd, x)).to(x.dtype)


def kernels_take(
    x: Tensor, mask: Tensor | None, residual: Tensor | None, running_mean: Tensor, weight: Tensor | None
) -> bool:
    """Whether the kernels of ``native`` are on and know this input: on a CPU, of one of their types."""
    statistics = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.is_cpu
        and mask is None
        and x.numel() > 0
        and statistics.get(x.dtype) == running_mean.dtype
        and running_mean.is_contiguous()
        and (weight is None or (weight.dtype == running_mean.dtype and weight.is_contiguous()))
        and (
            residual is None or (type(residual), residual.shape, residual.dtype) == (Tensor, x.shape, x.dtype)
        )
        and native.enabled()
    )


class KernelCall(NamedTuple):
    """What the kernels are told of a layer; they change its statistics, ``batches`` and ``clipped``."""

    running_mean: Tensor
    running_var: Tensor
    rmax: Tensor
    dmax: Tensor
    momentum: Tensor
    eps: float
    batches: Tensor | None = None  # counted up
    cumulative: bool = False  # the momentum is 1 / batches
    relu: bool = False
    clipped: Tensor | None = None  # (2, C): 1 where r and where d were clipped
    moving: MovingMoments | None = None


class KernelRenorm(Function):
    """By the kernels of ``native``: one call for each pass, which also adds a residual and cuts at zero."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        call: KernelCall,
    ) -> Tensor:
        """Statistics, correction, moving averages and output of input that ``dense`` has seen."""
        mean, var, rmax, dmax, momentum, eps, batches, cumulative, relu, clipped, ctx.moving = call
        residual = residual if residual is None else _like(residual, x)
        y: Tensor
        y, saved = torch.ops.batch_renorm_native.forward.default(
            x,
            weight,
            bias,
            residual,
            mean,
            var,
            batches,
            rmax,
            dmax,
            momentum,
            eps,
            cumulative,
            relu,
            clipped,
        )
        # What a ReLU alone lets through is found again from x; after an addition it takes the output.
        ctx.save_for_backward(x, weight, saved, y if relu and residual is not None else None)
        ctx.relu = relu
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, gamma, beta and what was added."""
        x, weight, saved, y = ctx.saved_tensors
        needs = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():
            if ctx.moving is not None:
                raise RuntimeError(_NOT_TWICE)
            mean, invstd, r, d, scale, shift = saved.unbind()
            if ctx.relu:
                affine = (x - along_channels(mean, x)) * along_channels(scale, x) + along_channels(shift, x)
                dy = dy.masked_fill((affine if y is None else y) <= 0, 0)
            w = r if weight is None else r * weight
            dx, projection, d_bias = _batch_norm_backward(dy, x, w, mean, invstd, needs[0])
            d_weight, d_residual = torch.addcmul(d * d_bias, r, projection), dy
        else:
            moving = ctx.moving or (None, None, None)
            dx, d_weight, d_bias, d_residual = torch.ops.batch_renorm_native.backward.default(
                _like(dy, x), x, y, saved, ctx.relu, needs[0], *moving
            )
            d_residual = dy if y is None else d_residual
        gradients = (dx, d_weight, d_bias, d_residual)
        return *(g if need else None for g, need in zip(gradients, needs, strict=True)), None


def dense(x: Tensor) -> Tensor:
    """The tensor itself when contiguous or channels_last, else a contiguous copy."""
    last = _CHANNELS_LAST.get(x.dim())
    return x if last is not None and x.is_contiguous(memory_format=last) else x.contiguous()


def _like(x: Tensor, pattern: Tensor) -> Tensor:
    """A copy unless it lies in memory as the pattern does: some gradients are expanded, or permuted."""
    return x if x.stride() == pattern.stride() else torch.empty_like(pattern, dtype=x.dtype).copy_(x)
