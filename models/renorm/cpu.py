"""The per-element work on a CPU, put together from the fast ones of torch's native kernels.

Measured on one thread (docs/batch_renorm.md): for contiguous input the native kernels are slow where they
collect the statistics and where they write the input's gradient, fast where they apply a scale and a
shift, and fast where they sum for the gradients of weight and bias. Here the fast ones do all. Where the
channels are innermost (channels_last, and one value per channel and example) the statistics are fast,
too, and ``addcmul`` applies a scale and a shift faster than the kernel made for it.

Half precision takes the native kernels throughout: they alone mix it with float32 statistics in one pass.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_aten = torch.ops.aten

# Examples that the first guess of the mean is made from.
_GUESS_EXAMPLES = 8


class Statistics(NamedTuple):
    """What one batch gives.

    Attributes:
        mean: (C,).
        std: biased standard deviation with epsilon inside the root, (C,).
        shifted: the input less ``guess``, in memory that the output will take; None where that is no use.
        guess: about the mean, (C,).
    """

    mean: Tensor
    std: Tensor
    shifted: Tensor | None = None
    guess: Tensor | None = None


def batch_statistics(x: Tensor, eps: float) -> Statistics:
    """Mean and deviation of each channel in float32 (float64 for float64 input), without gradient.

    Args:
        x: (N, C, ...), in one of the dense formats that ``as_dense`` gives.
        eps: added to the variance.
    """
    if x.dtype in (torch.bfloat16, torch.float16):
        # Given float32 running tensors, the kernel keeps float32 statistics of half-precision input.
        dummy = torch.zeros(x.shape[1], dtype=torch.float32)
        mean, var = torch.batch_norm_update_stats(x, dummy, dummy, 0.0)
        return Statistics(mean, var.add_(eps).sqrt_())
    if _channels_innermost(x):
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        return Statistics(mean, var.add_(eps).sqrt_())
    # Variance by sums of squares about a guess of the mean. With the guess from whole examples the
    # rounding error, eps * ((guess - mean) / std)**2, stays small: no example's mean is further off than
    # sqrt(N) deviations.
    guess = x[:: max(1, x.shape[0] // _GUESS_EXAMPLES)].mean([dim for dim in range(x.dim()) if dim != 1])
    one = torch.ones_like(guess)
    zero = torch.zeros_like(guess)
    shifted = torch.batch_norm(x, None, None, guess, one, False, 0.0, 0.0, False)
    _, squares, sums = _aten.native_batch_norm_backward(
        shifted, shifted, None, None, None, zero, one, True, 0.0, [False, True, True]
    )
    values = x.numel() // x.shape[1]
    offset = sums.div_(values)
    var = squares.div_(values).addcmul_(offset, offset, value=-1)
    # Rounding may leave a constant channel a little below zero; what is not a number stays so.
    return Statistics(guess + offset, var.clamp_min_(0.0).add_(eps).sqrt_(), shifted, guess)


def normalize(x: Tensor, w: Tensor, b: Tensor, statistics: Statistics) -> Tensor:
    """(x - mean) / std * w + b for each channel, in the type and the memory format of ``x``."""
    mean, std, shifted, guess = statistics
    if shifted is not None and guess is not None:
        empty = torch.empty(0, dtype=mean.dtype)
        _aten.native_batch_norm.out(
            shifted, w, b, mean - guess, std.square(), False, 0.0, 0.0,
            out=shifted, save_mean=empty, save_invstd=empty.clone(),
        )  # fmt: skip
        return shifted
    if x.dtype != mean.dtype:
        return torch.batch_norm(x, w, b, mean, std.square(), False, 0.0, 0.0, False)
    scale = w / std
    return torch.addcmul(
        _along(torch.addcmul(b, mean, scale, value=-1), x), x, _along(scale, x), out=torch.empty_like(x)
    )


def gradient_sums(dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel the sums of dy * x_hat and of dy, where x_hat = (x - mean) * invstd."""
    _, projection, total = _aten.native_batch_norm_backward(
        dy, x, invstd, None, None, mean, invstd, True, 0.0, [False, True, True]
    )
    return projection, total


def input_gradient(
    dy: Tensor, x: Tensor, w: Tensor, mean: Tensor, invstd: Tensor, g_mean: Tensor, g_projection: Tensor
) -> Tensor:
    """W * invstd * (dy - g_mean - x_hat * g_projection), in the type and the memory format of ``x``."""
    scale = w * invstd
    slope = (scale * g_projection).mul_(invstd).neg_()
    shift = torch.addcmul(scale * g_mean, slope, mean).neg_()
    if x.dtype != mean.dtype:
        parts = zip(dy.split(1), x.split(1), strict=True)
        whole = [
            torch.addcmul(_along(shift, x), a.to(mean.dtype), _along(slope, x))
            .addcmul_(g.to(mean.dtype), _along(scale, x))
            .to(x.dtype)
            for g, a in parts
        ]
        return torch.cat(whole)
    if _channels_innermost(x):
        dx = torch.addcmul(_along(shift, x), x, _along(slope, x), out=torch.empty_like(x))
    else:
        dx = torch.batch_norm(
            x, slope, shift, torch.zeros_like(mean), torch.ones_like(mean), False, 0.0, 0.0, False
        )
    return dx.addcmul_(dy, _along(scale, x))


def _channels_innermost(x: Tensor) -> bool:
    return x.stride(1) == 1


def _along(vector: Tensor, x: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...)."""
    return vector.view(1, -1, *[1] * (x.dim() - 2))
