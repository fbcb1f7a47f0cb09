"""A batch's statistics, the correction r and d, and the running statistics: one value a channel, (C,).

Nothing here reads a value back from an accelerator, so the host never waits for the device.
"""

import torch
import torch.distributed as dist
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def along_channels(vector: Tensor, x: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...), to broadcast against x."""
    return vector.view(1, -1, *[1] * (x.dim() - 2))


def has_kernels(x: Tensor) -> bool:
    """Whether torch's batch normalization kernels take x; a compiler generates its own."""
    return (x.is_cpu or x.is_cuda) and x.numel() > 0 and not torch.compiler.is_compiling()


def batch_statistics(
    x: Tensor, eps: float, mask: Tensor | None = None, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean and standard deviation (biased, eps inside the root) of each channel, in float32 or wider.

    The third is the number of values a channel, a 0-dimensional tensor; None where it is that of x.

    Args:
        x: (N, C, ...).
        eps: added to the variance.
        mask: (N, ...), True where a value counts; None takes all.
        group: processes whose batches are taken together; None for this one's alone.
    """
    over = [dim for dim in range(x.dim()) if dim != 1]
    count = None
    if mask is not None:
        inside, count = mask.unsqueeze(1), mask.sum()
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        # Padding may hold NaN: it is replaced, not multiplied by zero.
        mean = torch.where(inside, x, 0.0).sum(over) / count
        squares = torch.where(inside, x - along_channels(mean, x), 0.0).square_().sum(over)
        std = (squares / count + eps).sqrt_()
    elif not has_kernels(x):
        var, mean = torch.var_mean(x.to(torch.promote_types(x.dtype, torch.float32)), over, correction=0)
        std = (var + eps).sqrt_()
    elif x.is_cuda:
        mean, invstd = torch.batch_norm_stats(x, eps)
        std = invstd.reciprocal()
    else:
        # Given float32 running statistics the kernel keeps float32 statistics of half-precision input.
        unused = torch.zeros(x.shape[1]) if x.dtype in HALF else None
        mean, var = torch.batch_norm_update_stats(x, unused, unused, 0.0)
        std = (var + eps).sqrt_()
    if group is None:
        return mean, std, count
    values = mean.new_full((1,), x.numel() // x.shape[1]) if count is None else count.view(1).to(mean)
    # The statistics of an empty batch are NaN: they are replaced, since 0 * NaN is NaN.
    own = torch.cat([*(torch.where(values > 0, v, 0.0) for v in (mean, std.square())), values])
    every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, own, group)
    means, squares, counts = torch.split(torch.stack(every), [len(mean), len(mean), 1], dim=1)
    count = counts.sum()
    shares = counts / count
    mean = (shares * means).sum(0)
    # Each square has eps in it, and so has their weighted mean.
    return mean, (shares * (squares + (means - mean).square())).sum(0).sqrt_(), count


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
    """The paper's r and d from the running statistics before this batch; then moves these by one step.

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
    # Adding 0 * std makes the shift NaN where std is not finite: one operation checks both.
    running_mean.addcmul_(torch.add(shift, std, alpha=0).nan_to_num_(0.0, 0.0, 0.0), momentum)
    running_std.addcmul_((std - running_std).nan_to_num_(0.0, 0.0, 0.0), momentum)
    torch.sub(running_std.square_(), eps, out=running_var)
    return r, d


# The compiler's partitioner would compute r and d again in the backward pass rather than save them, from
# running statistics that have moved by then (torch 2.15). It saves the output of an opaque operator.
@torch.library.custom_op("batch_renorm::saved", mutates_args=())
def _saved(r: Tensor, d: Tensor) -> Tensor:
    return torch.stack([r, d])


@_saved.register_fake
def _(r: Tensor, d: Tensor) -> Tensor:
    return r.new_empty((2, *d.shape))
