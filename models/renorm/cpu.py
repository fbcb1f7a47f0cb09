"""The per-element work on a CPU, put together from the fast ones of torch's native kernels.

Measured on one thread (docs/batch_renorm.md): for contiguous input the native kernels are slow where they
collect the statistics and where they write the input's gradient, fast where they apply a scale and a
shift, and fast where they sum for the gradients of weight and bias. Here the fast ones do all. Where the
channels are innermost (channels_last, and one value per channel and example) the native kernels are fast,
but for applying a scale and a shift, which ``addcmul`` does faster. Small input goes where the operations
are fewest.

Half precision takes the native kernels throughout: they alone mix it with float32 statistics in one pass.
"""

import torch
from torch import Tensor

from .kernels import Kernels, Shifted, Statistics

_backward = torch.ops.aten.native_batch_norm_backward.default

# Examples that the first guess of the mean is made from.
_GUESS_EXAMPLES = 8

# Values of input below which one slow kernel costs less than several fast ones.
_SMALL = 1 << 14

# What addcmul adds to where only its product is wanted: the one operation that multiplies two vectors and a
# number. Arithmetic between a vector and a number costs twice as much, for the number is made a tensor.
_ZERO = {dtype: torch.zeros((), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)}


def batch_statistics(x: Tensor, eps: float, epsilon: Tensor) -> Statistics:
    """Mean and deviation of each channel in float32 (float64 for float64 input), without gradient.

    Args:
        x: (N, C, ...), in one of the dense formats that ``as_dense`` gives.
        eps: added to the variance.
        epsilon: the same as a tensor without dimensions.
    """
    del eps
    if x.dtype in (torch.bfloat16, torch.float16):
        # Given float32 running tensors, the kernel keeps float32 statistics of half-precision input.
        dummy = torch.zeros(x.shape[1], dtype=torch.float32)
        mean, var = torch.batch_norm_update_stats(x, dummy, dummy, 0.0)
        std = var.add_(epsilon).sqrt_()
        return Statistics(mean, std, std.reciprocal())
    if _channels_innermost(x) or x.numel() < _SMALL:
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        std = var.add_(epsilon).sqrt_()
        return Statistics(mean, std, std.reciprocal())
    # Variance by sums of squares about a guess of the mean. With the guess from whole examples the
    # rounding error, eps * ((guess - mean) / std)**2, stays small: no example's mean is further off than
    # sqrt(N) deviations.
    guess = x[:: max(1, x.shape[0] // _GUESS_EXAMPLES)].mean([dim for dim in range(x.dim()) if dim != 1])
    one = torch.ones_like(guess)
    zero = torch.zeros_like(guess)
    shifted = torch.native_batch_norm(x, None, None, guess, one, False, 0.0, 0.0)[0]
    _, squares, sums = _backward(
        shifted, shifted, None, None, None, zero, one, True, 0.0, [False, True, True]
    )
    part = x.shape[1] / x.numel()
    offset = torch.addcmul(zero, sums, one, value=part)
    var = torch.addcmul(epsilon, squares, one, value=part).addcmul_(offset, offset, value=-1)
    # Rounding may leave a constant channel a little below epsilon; what is not a number stays so.
    std = var.clamp_min_(epsilon).sqrt_()
    return Statistics(guess + offset, std, std.reciprocal(), Shifted(shifted, guess, one))


def normalize(x: Tensor, scale: Tensor, b: Tensor, statistics: Statistics) -> Tensor:
    """(x - mean) * scale + b for each channel, in the type and the memory format of ``x``."""
    mean, shifted = statistics.mean, statistics.shifted
    if shifted is not None:
        y, offset, unused = shifted.values, mean - shifted.guess, torch.empty(0, dtype=mean.dtype)
        torch.native_batch_norm(y, scale, b, offset, shifted.one, False, 0.0, 0.0, out=(y, unused, unused))
        return y
    if x.dtype != mean.dtype:
        return torch.native_batch_norm(x, scale, b, mean, torch.ones_like(mean), False, 0.0, 0.0)[0]
    shift = torch.addcmul(b, mean, scale, value=-1)
    return torch.addcmul(_along(shift, x), x, _along(scale, x), out=torch.empty_like(x))


def gradient_sums(dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel the sums of dy * x_hat and of dy, where x_hat = (x - mean) * invstd."""
    _, projection, total = _backward(dy, x, invstd, None, None, mean, invstd, True, 0.0, [False, True, True])
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
    zero = _ZERO[mean.dtype]
    # The gradient is scale * dy and a line in x through (mean, shift).
    slope = torch.addcmul(zero, scale * invstd, projection, value=-1 / values)
    shift = torch.addcmul(zero, scale, total, value=-1 / values)
    if x.dtype != mean.dtype:
        return _input_gradient_of_half(dy, x, scale, slope, shift.addcmul_(slope, mean, value=-1))
    if _channels_innermost(x):
        shift.addcmul_(slope, mean, value=-1)
        dx = torch.addcmul(_along(shift, x), x, _along(slope, x), out=torch.empty_like(x))
    else:
        dx = torch.native_batch_norm(x, slope, shift, mean, torch.ones_like(mean), False, 0.0, 0.0)[0]
    return dx.addcmul_(dy, _along(scale, x))


def _input_gradient_of_half(dy: Tensor, x: Tensor, scale: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    """As above in float32, an example at a time so that no whole batch lies in memory in float32."""
    dx = torch.empty_like(x)
    scale, slope, shift = _along(scale, x), _along(slope, x), _along(shift, x)
    for i in range(len(x)):
        part = slice(i, i + 1)
        dx[part] = torch.addcmul(shift, x[part].float(), slope).addcmul_(dy[part].float(), scale)
    return dx


def prefers_whole_kernel(x: Tensor) -> bool:
    """Whether batch normalization's own backward kernel is the fastest way to all its gradients."""
    return _channels_innermost(x) or x.numel() < _SMALL or x.dtype in (torch.bfloat16, torch.float16)


def _channels_innermost(x: Tensor) -> bool:
    return x.stride(1) == 1


def _along(vector: Tensor, x: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...), or as it is where that broadcasts."""
    dimensions = x.dim()
    return vector if dimensions == 2 else vector.view(1, -1, *[1] * (dimensions - 2))


CPU = Kernels(batch_statistics, normalize, gradient_sums, input_gradient)
