"""Per-channel arithmetic of Batch Renormalization: the correction r, d and the moving averages.

Everything here works on vectors with one entry a channel and never asks an accelerator for a value, so a
training step there is not held up. On a CPU a value costs less than an operation, and saves some.
"""

from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor


class Running(NamedTuple):
    """A layer's moving averages; updates change the first two in place.

    Attributes:
        mean: of the mean, (C,).
        var: square of the moving average of the deviation, less epsilon, (C,): BatchNorm's inference adds
            epsilon back.
        eps: what the square of the deviation holds beside the variance; a tensor without dimensions.
            Rounding may leave a variance below zero by a ten-millionth of it.
    """

    mean: Tensor
    var: Tensor
    eps: Tensor

    def deviation(self) -> Tensor:
        """The moving average of the standard deviation, (C,), a new tensor."""
        return (self.var + self.eps).sqrt_()


def on_host(x: Tensor) -> bool:
    """Whether a tensor's values are at hand: on a CPU, and not while a compiler looks on."""
    return not torch.compiler.is_compiling() and x.is_cpu and type(x) is Tensor


def correction(
    shift: Tensor, std: Tensor, running_std: Tensor, rmax: Tensor, dmax: Tensor
) -> tuple[Tensor, Tensor]:
    """The paper's r and d, from the running statistics as they were before this batch.

    Args:
        shift: batch mean less running mean, (C,).
        std: batch standard deviation with epsilon inside the root, (C,).
        running_std: moving average of the standard deviation, epsilon in it, (C,).
        rmax: largest r, at least 1; a tensor without dimensions.
        dmax: largest absolute d, at least 0; a tensor without dimensions.

    Returns:
        r, clipped to [1 / rmax, rmax], and d, clipped to [-dmax, dmax]; both (C,).
    """
    if on_host(std):
        high, bound = rmax.item(), dmax.item()
        return (std / running_std).clamp_(1 / high, high), (shift / running_std).clamp_(-bound, bound)
    r = (std / running_std).clamp_(rmax.reciprocal(), rmax)
    d = (shift / running_std).clamp_(-dmax, dmax)
    if torch.compiler.is_compiling():
        r, d = _saved(r, d).unbind()
    return r, d


# The compiler's partitioner computes r and d again in the backward pass rather than save them, from the
# running statistics, which have moved by then (torch 2.15). It saves what an operation unknown to it gives.
@torch.library.custom_op("batch_renorm::saved", mutates_args=())
def _saved(r: Tensor, d: Tensor) -> Tensor:
    return torch.stack([r, d])


@_saved.register_fake
def _(r: Tensor, d: Tensor) -> Tensor:
    return torch.empty_like(r).new_empty((2, *d.shape))


def update_running(
    running: Running, shift: Tensor, std: Tensor, running_std: Tensor, momentum: Tensor
) -> None:
    """Move the running statistics towards the batch's, averaging the standard deviation and not its square.

    A channel whose batch statistics are not finite keeps its running statistics. A value that is not finite
    makes both of its channel's batch statistics so, and an overflow the deviation; the mean is asked
    through both.

    Args:
        running: changed in place.
        shift: batch mean less running mean, (C,).
        std: batch standard deviation with epsilon inside the root, (C,).
        running_std: what ``running.deviation()`` gave; used up by this call, (C,).
        momentum: weight of the batch, a tensor without dimensions.
    """
    # The sum of squares is finite only if every channel is (should it overflow, the long way serves, too).
    if on_host(std) and isfinite(torch.dot(std, std).item()):
        running.mean.addcmul_(shift, momentum)
        running_std.lerp_(std, momentum)
    else:
        # 0 * std is not a number where std is infinite or undefined: one operation asks for both.
        mean_step = torch.add(shift, std, alpha=0).nan_to_num_(0.0, 0.0, 0.0)
        running.mean.addcmul_(mean_step, momentum)
        std_step = (std - running_std).nan_to_num_(0.0, 0.0, 0.0)
        running_std.addcmul_(std_step, momentum)
    torch.addcmul(-running.eps, running_std, running_std, out=running.var)


def clipped_fractions(shift: Tensor, std: Tensor, running_std: Tensor, r: Tensor, d: Tensor) -> Tensor:
    """The shares of channels whose r and whose d were clipped, (2,)."""
    return torch.stack(
        [((std / running_std) != r).float().mean(), ((shift / running_std) != d).float().mean()]
    )
