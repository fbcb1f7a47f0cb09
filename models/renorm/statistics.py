"""Per-channel arithmetic of Batch Renormalization: the correction r, d and the moving averages.

Everything here works on vectors with one entry a channel and never asks the device for a value, so a training
step on an accelerator is not held up.
"""

import torch
from torch import Tensor


def correction(
    mean: Tensor, std: Tensor, running_mean: Tensor, running_std: Tensor, rmax: Tensor, dmax: Tensor
) -> tuple[Tensor, Tensor]:
    """The paper's r and d, from the running statistics as they were before this batch.

    Args:
        mean: batch mean, (C,).
        std: batch standard deviation with epsilon inside the root, (C,).
        running_mean: moving average of the mean, (C,).
        running_std: moving average of the standard deviation, epsilon in it, (C,).
        rmax: largest r, at least 1; a tensor without dimensions.
        dmax: largest absolute d, at least 0; a tensor without dimensions.

    Returns:
        r, clipped to [1 / rmax, rmax], and d, clipped to [-dmax, dmax]; both (C,).
    """
    r = torch.clamp(std / running_std, rmax.reciprocal(), rmax)
    d = torch.clamp((mean - running_mean) / running_std, -dmax, dmax)
    return r, d


def running_deviation(running_var: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """The moving average of the standard deviation, from what the state dictionary holds.

    ``running_var`` is stored as the square less epsilon, which is what BatchNorm's inference adds back.
    """
    return (running_var.to(dtype) + eps).sqrt_()


def update_running(
    mean: Tensor,
    std: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    running_std: Tensor,
    momentum: Tensor,
    eps: float,
) -> None:
    """Move the running statistics towards the batch's, averaging the standard deviation and not its square.

    A channel whose batch statistics are not finite keeps its running statistics. The deviation alone is asked:
    an infinite or undefined value anywhere in a channel makes its deviation so, too.

    Args:
        mean: batch mean, (C,).
        std: batch standard deviation with epsilon inside the root, (C,).
        running_mean: changed in place, (C,).
        running_var: changed in place, (C,).
        running_std: what ``running_deviation`` gave; used up by this call, (C,).
        momentum: weight of the batch, a tensor without dimensions.
        eps: what the square of the deviation holds beside the variance.
    """
    finite = std < torch.inf
    running_mean.lerp_(torch.where(finite, mean, running_mean).to(running_mean.dtype), momentum)
    running_std.lerp_(torch.where(finite, std, running_std), momentum)
    running_var.copy_(running_std.square_().sub_(eps).clamp_min_(0.0))


def clipped_fractions(
    mean: Tensor, std: Tensor, running_mean: Tensor, running_std: Tensor, r: Tensor, d: Tensor
) -> Tensor:
    """The shares of channels whose r and whose d were clipped, (2,)."""
    r_clipped = (std / running_std) != r
    d_clipped = ((mean - running_mean) / running_std) != d
    return torch.stack([r_clipped.float().mean(), d_clipped.float().mean()])
