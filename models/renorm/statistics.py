"""A batch's statistics, the correction r, d, and the moving averages: vectors with one entry a channel, (C,).

Nothing asks an accelerator for a value, so a training step there is not held up.
"""

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def along_channels(vector: Tensor, x: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...), for arithmetic with x."""
    return vector.view(1, -1, *[1] * (x.dim() - 2))


def has_kernels(x: Tensor) -> bool:
    """Whether torch has batch normalization's kernels for it; a compiler makes its own."""
    return (x.is_cpu or x.is_cuda) and x.numel() > 0 and not torch.compiler.is_compiling()


def batch_statistics(x: Tensor, eps: float, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean and standard deviation (biased, eps inside the root) of each channel, in float32 or wider.

    With a mask, (N, ...) and True where a value counts, also the number of values a channel.
    """
    over = [dim for dim in range(x.dim()) if dim != 1]
    if mask is not None:
        inside, count = mask.unsqueeze(1), mask.sum()
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        # Padding may hold anything, also what is not finite: it is replaced, not multiplied by zero.
        mean = torch.where(inside, x, 0.0).sum(over) / count
        squares = torch.where(inside, x - along_channels(mean, x), 0.0).square_().sum(over)
        return mean, (squares / count + eps).sqrt(), count
    if not has_kernels(x):
        var, mean = torch.var_mean(x.to(torch.promote_types(x.dtype, torch.float32)), over, correction=0)
    elif x.is_cuda:
        mean, invstd = torch.batch_norm_stats(x, eps)
        return mean, invstd.reciprocal(), None
    else:
        # Given float32 running statistics the kernel keeps float32 statistics of half-precision input.
        unused = torch.zeros(x.shape[1]) if x.dtype in HALF else None
        mean, var = torch.batch_norm_update_stats(x, unused, unused, 0.0)
    return mean, (var + eps).sqrt_(), None


def correct(
    mean: Tensor,
    std: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    rmax: Tensor,
    dmax: Tensor,
    momentum: Tensor,
    clipped: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The paper's r and d, from the running statistics before this batch; then one step of these.

    The standard deviation is averaged, not its square; `running_var` is that square less eps, which
    BatchNorm's inference adds again. A channel whose batch statistics are not finite keeps its running
    statistics. `clipped`, (2,), is set to the shares of channels whose r and whose d were clipped.
    """
    running_std = (running_var + eps).sqrt_()
    shift = mean - running_mean
    raw_r, raw_d = std / running_std, shift / running_std
    r, d = raw_r.clamp(rmax.reciprocal(), rmax), raw_d.clamp(-dmax, dmax)
    if clipped is not None:
        clipped.copy_(torch.stack([(raw_r != r).float().mean(), (raw_d != d).float().mean()]))
    if torch.compiler.is_compiling():
        r, d = _saved(r, d).unbind()
    # 0 * std is not a number where std is infinite or undefined: one operation asks mean and deviation.
    running_mean.addcmul_(torch.add(shift, std, alpha=0).nan_to_num_(0.0, 0.0, 0.0), momentum)
    running_std.addcmul_((std - running_std).nan_to_num_(0.0, 0.0, 0.0), momentum)
    torch.sub(running_std.square_(), eps, out=running_var)
    return r, d


# The compiler's partitioner computes r and d again in the backward pass rather than save them, from the
# running statistics, which have moved by then (torch 2.15). It saves what an operation unknown to it gives.
@torch.library.custom_op("batch_renorm::saved", mutates_args=())
def _saved(r: Tensor, d: Tensor) -> Tensor:
    return torch.stack([r, d])


@_saved.register_fake
def _(r: Tensor, d: Tensor) -> Tensor:
    return r.new_empty((2, *d.shape))
