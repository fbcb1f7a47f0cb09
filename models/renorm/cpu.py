"""The per-element work on a CPU, put together from the fast ones of torch's native kernels.

Measured on one thread (docs/batch_renorm.md): for contiguous input the native kernels are slow where they
collect the statistics and where they write the input's gradient, fast where they apply a scale and a
shift, and fast where they sum for the gradients of weight and bias. Here the fast ones do all. Where the
channels are innermost (channels_last, and one value per channel and example) the statistics are fast,
too, and ``addcmul`` applies a scale and a shift faster than the kernel made for it.

Half precision takes the native kernels throughout: they alone mix it with float32 statistics in one pass.
"""

import torch
from torch import Tensor

from .kernels import Kernels, Statistics

_aten = torch.ops.aten

# Examples that the first guess of the mean is made from.
_GUESS_EXAMPLES = 8


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


def normalize(x: Tensor, scale: Tensor, b: Tensor, statistics: Statistics) -> Tensor:
    """(x - mean) * scale + b for each channel, in the type and the memory format of ``x``."""
    mean, _, shifted, guess = statistics
    if shifted is not None and guess is not None:
        return _scale_and_shift(shifted, scale, torch.addcmul(b, guess - mean, scale), shifted)
    shift = torch.addcmul(b, mean, scale, value=-1)
    if x.dtype != mean.dtype:
        return _scale_and_shift(x, scale, shift)
    return torch.addcmul(_along(shift, x), x, _along(scale, x), out=torch.empty_like(x))


def gradient_sums(dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel the sums of dy * x_hat and of dy, where x_hat = (x - mean) * invstd."""
    _, projection, total = _aten.native_batch_norm_backward(
        dy, x, invstd, None, None, mean, invstd, True, 0.0, [False, True, True]
    )
    return projection, total


def input_gradient(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    mean: Tensor,
    invstd: Tensor,
    total: Tensor,
    projection: Tensor,
    values: int,
) -> Tensor:
    """Scale * (dy - total / values - x_hat * projection / values), in the type and format of ``x``."""
    slope = (scale * invstd).mul_(projection)
    shift = torch.addcmul(slope * mean, scale, total, value=-1).div_(values)
    slope.div_(-values)
    if x.dtype != mean.dtype:
        return _input_gradient_of_half(dy, x, scale, slope, shift)
    if _channels_innermost(x):
        dx = torch.addcmul(_along(shift, x), x, _along(slope, x), out=torch.empty_like(x))
    else:
        dx = _scale_and_shift(x, slope, shift)
    return dx.addcmul_(dy, _along(scale, x))


def _input_gradient_of_half(dy: Tensor, x: Tensor, scale: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    """As above in float32, an example at a time so that no whole batch lies in memory in float32."""
    dx = torch.empty_like(x)
    scale, slope, shift = _along(scale, x), _along(slope, x), _along(shift, x)
    for i in range(len(x)):
        part = slice(i, i + 1)
        dx[part] = torch.addcmul(shift, x[part].float(), slope).addcmul_(dy[part].float(), scale)
    return dx


def _scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
    """X * scale + shift for each channel by batch normalization's inference kernel; in place if told so."""
    mean, var = torch.zeros_like(shift), torch.ones_like(shift)
    if out is None:
        return torch.batch_norm(x, scale, shift, mean, var, False, 0.0, 0.0, False)
    unused = torch.empty(0, dtype=shift.dtype)
    _aten.native_batch_norm.out(
        x, scale, shift, mean, var, False, 0.0, 0.0, out=out, save_mean=unused, save_invstd=unused.clone()
    )
    return out


def _channels_innermost(x: Tensor) -> bool:
    return x.stride(1) == 1


def _along(vector: Tensor, x: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...), or as it is where that broadcasts."""
    dimensions = x.dim()
    return vector if dimensions == 2 else vector.view(1, -1, *[1] * (dimensions - 2))


CPU = Kernels(batch_statistics, normalize, gradient_sums, input_gradient)
