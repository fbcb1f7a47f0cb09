"""The two autograd functions of a Batch Renormalization in training: torch's operations, and fused kernels.

Both compute y = gamma ((x - mean) / std r + d) + beta, with r and d constant under the gradient

    dx = gamma r / std * (dy - mean(dy) - x_hat * mean(dy * x_hat)),    x_hat = (x - mean) / std.

What it subtracts is the least-squares fit of dy by a constant and x_hat over the batch: it depends on the
other examples. ``gradient_statistics="moving"`` fits dy over the recent batches together, by a constant and
the output before gamma and beta, z = r x_hat + d: the input as (nearly) the running statistics normalize it.
The batch's own x_hat has no component along what tells this batch from others. Moving averages in the
gradient are from Yan et al. (arXiv 2001.06838, ICLR 2020), who take the mean of z**2 for 1. Where the running
statistics lag it is not 1, and with their rule the scale of the weights runs away.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from . import native
from .statistics import along_channels, has_kernels

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_NOT_TWICE = "only the batch's own gradient statistics, without a mask, can be differentiated twice"


class GradientAverages(NamedTuple):
    """A layer's moving gradient statistics; each backward pass changes the first two in place."""

    moments: Tensor  # of the means of dy, dy * z, z and z**2, (4, C)
    batches: Tensor  # backward passes so far, 0-dimensional
    momentum: Tensor  # weight of a batch; the first 1 / momentum batches all weigh the same
    group: dist.ProcessGroup | None = None  # the processes whose batches count together; None for this one's

    def take_in(self, mean: Tensor, projection: Tensor, r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """What replaces a batch's mean(dy) and mean(dy * x_hat): a constant and a factor of x_hat."""
        now = torch.stack([mean, torch.addcmul(d * mean, r, projection), d, torch.addcmul(d * d, r, r)])
        if self.group is not None:
            dist.all_reduce(now.div_(dist.get_world_size(self.group)), group=self.group)
        constant, slope = self.fit(now)
        return torch.addcmul(constant, d, slope), r * slope  # constant + slope * z, where z is r x_hat + d

    def fit(self, now: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a batch's moments, (4, C), and fit dy by constant + slope * z, (C,) each."""
        share = torch.maximum(self.batches.add_(1).reciprocal(), self.momentum)
        # Where the batch's is not finite the average stays.
        self.moments.addcmul_((now - self.moments).nan_to_num_(0.0, 0.0, 0.0), share)
        dy, product, z, square = self.moments
        slope = torch.addcmul(product, z, dy, value=-1) / torch.addcmul(square, z, z, value=-1)
        return torch.addcmul(dy, slope, z, value=-1), slope


class TorchRenorm(Function):
    """By torch's batch normalization kernels; compiled, and on other devices, by ordinary operations."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        std: Tensor,
        r: Tensor,
        d: Tensor,
        mask: Tensor | None,
        count: Tensor | None,
        averages: GradientAverages | None,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        """Normalize by statistics as ``batch_statistics`` gives them, and the correction of ``correct``."""
        scale, shift = r / std, d  # y = (x - mean) * scale + shift
        if weight is not None:
            scale.mul_(weight)
            shift = d * weight if bias is None else torch.addcmul(bias, d, weight)
        elif bias is not None:
            shift = d + bias
        ctx.save_for_backward(x, weight, mean, std, r, d, mask, count)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.averages, ctx.group = averages, group
        if not has_kernels(x):
            centred = x.to(mean.dtype) - along_channels(mean, x)
            return (centred * along_channels(scale, x) + along_channels(shift, x)).to(x.dtype)
        if x.is_cuda:  # it computes (x - mean) * invstd * weight + bias: the scale goes in as invstd
            return torch.batch_norm_elemt(x, None, shift, mean, scale, 0.0)
        return torch.native_batch_norm(x, scale, shift, mean, torch.ones_like(mean), False, 0.0, 0.0)[0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, gamma and beta."""
        x, weight, mean, std, r, d, mask, count = ctx.saved_tensors
        needs_dx, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        invstd = std.reciprocal()
        w = r if weight is None else r * weight
        batch_norms = ctx.averages is None and count is None and has_kernels(x)
        dx, projection, total = _batch_norm_backward(dy, x, w, mean, invstd, batch_norms and needs_dx)
        if not batch_norms:
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                raise RuntimeError(_NOT_TWICE)
            constant, slope = total, projection
            if ctx.group is not None:  # even where this process needs no dx: others wait for its sums
                sums = torch.stack([total, projection])
                dist.all_reduce(sums, group=ctx.group)
                constant, slope = sums.unbind()
            values = x.numel() // x.shape[1] if count is None else count
            constant, slope = constant / values, slope / values
            if ctx.averages is not None:
                constant, slope = ctx.averages.take_in(constant, slope, r, d)
            # The gradient is (dy - constant - x_hat * slope) * w * invstd.
            if needs_dx and x.is_cuda and mask is None and has_kernels(x):
                # It takes means from sums over n values: here n = 1, and means go in.
                one, like = torch.ones(1, dtype=torch.int32, device=x.device), _like(dy, x)
                dx = torch.batch_norm_backward_elemt(like, x, mean, invstd, w, constant, slope / invstd, one)
            elif needs_dx:
                centred = x.to(mean.dtype) - along_channels(mean, x)
                subtracted = along_channels(constant, x) + centred * along_channels(slope * invstd, x)
                if mask is not None:  # nothing is subtracted from padding
                    subtracted = torch.where(mask.unsqueeze(1), subtracted, 0.0)
                dx = ((dy - subtracted) * along_channels(w * invstd, x)).to(x.dtype)
        d_weight = d_bias = None
        if weight is not None and needs_weight:
            d_weight = torch.addcmul(d * total, r, projection).to(weight.dtype)
        if ctx.bias_dtype is not None and needs_bias:
            d_bias = total.to(ctx.bias_dtype)
        return dx, d_weight, d_bias, None, None, None, None, None, None, None, None


def _batch_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, invstd: Tensor, needs_dx: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Batch normalization's own: the gradient of x, and the sums of dy * x_hat and of dy, (C,) each."""
    if has_kernels(x):
        kernel: Any = torch.ops.aten.native_batch_norm_backward.default
        wanted = [needs_dx, True, True]
        dx, projection, total = kernel(dy, x, weight, None, None, mean, invstd, True, 0.0, wanted)
        return dx if needs_dx else None, projection, total
    over = [dim for dim in range(x.dim()) if dim != 1]
    x_hat = (x.to(mean.dtype) - along_channels(mean, x)) * along_channels(invstd, x)
    return None, (dy * x_hat).sum(over), dy.to(mean.dtype).sum(over)


class KernelRenorm(Function):
    """By the kernels of ``native``: one call a pass, which also adds a residual and applies a ReLU."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        rmax: Tensor,
        dmax: Tensor,
        momentum: Tensor,
        eps: float,
        relu: bool,
        clipped: Tensor | None,
        averages: GradientAverages | None,
    ) -> Tensor:
        """Normalize ``dense`` input that ``kernels_take``; this moves the running statistics.

        ``clipped``, (2, C), is set to 1 where r and where d were clipped, elsewhere to 0.
        """
        added = residual if residual is None else _like(residual, x)
        mean, var = running_mean, running_var
        kernel: Any = torch.ops.batch_renorm_native.forward.default
        y: Tensor
        y, saved = kernel(x, weight, bias, added, mean, var, rmax, dmax, momentum, eps, relu, clipped)
        # The backward pass finds the zeros of a ReLU again from x; after a sum it needs the output.
        ctx.save_for_backward(x, weight, saved, y if relu and added is not None else None)
        ctx.relu, ctx.averages = relu, averages
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, gamma, beta and the residual."""
        x, weight, saved, y = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():  # to be differentiated again: the same by torch's operations
            if ctx.averages is not None:
                raise RuntimeError(_NOT_TWICE)
            mean, invstd, r, d, scale, shift = saved.unbind()
            if ctx.relu:
                affine = (x - along_channels(mean, x)) * along_channels(scale, x) + along_channels(shift, x)
                dy = dy.masked_fill((affine if y is None else y) <= 0, 0)
            w = r if weight is None else r * weight
            dx, projection, d_bias = _batch_norm_backward(dy, x, w, mean, invstd, needs[0])
            d_weight, d_residual = torch.addcmul(d * d_bias, r, projection), dy
        else:
            averages = ctx.averages[:3] if ctx.averages else (None, None, None)
            dx, d_weight, d_bias, d_residual = torch.ops.batch_renorm_native.backward.default(
                _like(dy, x), x, y, saved, ctx.relu, needs[0], *averages
            )
            d_residual = dy if y is None else d_residual
        gradients = [dx, d_weight, d_bias, d_residual]
        wanted = [g if need else None for g, need in zip(gradients, needs[:4], strict=True)]
        return (*wanted, None, None, None, None, None, None, None, None, None)


def kernels_take(x: Tensor, residual: Tensor | None, running_mean: Tensor, weight: Tensor | None) -> bool:
    """Whether the kernels of ``native`` are on and take this input: on a CPU, of one of their types."""
    statistics = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.is_cpu
        and x.numel() > 0
        and statistics.get(x.dtype) == running_mean.dtype
        and running_mean.is_contiguous()
        and (weight is None or (weight.dtype == running_mean.dtype and weight.is_contiguous()))
        and (
            residual is None or (type(residual), residual.shape, residual.dtype) == (Tensor, x.shape, x.dtype)
        )
        and native.enabled()
    )


def dense(x: Tensor) -> Tensor:
    """The tensor itself when contiguous or channels_last, else a contiguous copy."""
    last = _CHANNELS_LAST.get(x.dim())
    return x if last is not None and x.is_contiguous(memory_format=last) else x.contiguous()


def _like(x: Tensor, pattern: Tensor) -> Tensor:
    """The tensor in the pattern's memory layout, copied if need be: gradients may be expanded or permuted."""
    return x if x.stride() == pattern.stride() else torch.empty_like(pattern, dtype=x.dtype).copy_(x)
