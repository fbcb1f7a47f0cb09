"""The per-element work, done by the native batch-normalization kernels of the device.

r and d are constants under the gradient, so Batch Renormalization is batch normalization with the affine
w = gamma * r, b = beta + gamma * d. What touches every element is therefore what batch normalization runs too.

On a CPU these are the kernels behind ``torch.nn.functional.batch_norm``; on CUDA the ones behind
``torch.nn.SyncBatchNorm``, which keep float32 statistics for half-precision input and know channels_last.
Any other device, a masked input and compiled code take ``plain.py``.
"""

import torch
from torch import Tensor

_aten = torch.ops.aten


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Statistics are kept in float32 for half-precision input, else in the input's own type."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def batch_statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (biased, epsilon inside the root) of each channel, without gradient.

    Args:
        x: (N, C, ...), floating point, on a CPU or a CUDA device.
        eps: added to the variance.

    Returns:
        Mean and deviation, (C,) each, in ``statistics_dtype(x)``.
    """
    if x.is_cuda:
        mean, invstd = torch.batch_norm_stats(_dense(x), eps)
        return mean, invstd.reciprocal()
    # Given float32 running tensors, the kernel keeps float32 statistics of half-precision input.
    dummy = None
    if x.dtype in (torch.bfloat16, torch.float16):
        dummy = torch.zeros(x.shape[1], dtype=torch.float32)
    mean, var = _aten.batch_norm_update_stats(x, dummy, dummy, 0.0)
    return mean, var.add_(eps).sqrt_()


def normalize(x: Tensor, w: Tensor, b: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x - mean) / std * w + b for each channel, in the type and the memory format of ``x``."""
    if x.is_cuda:
        return torch.batch_norm_elemt(_dense(x), w, b, mean, std.reciprocal(), 0.0)
    output: Tensor = _aten.native_batch_norm(x, w, b, mean, std.square(), False, 0.0, 0.0)[0]
    return output


def normalize_backward(
    dy: Tensor, x: Tensor, w: Tensor, mean: Tensor, invstd: Tensor, needs_dx: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradient of ``normalize`` through the batch's own mean and deviation.

    Returns:
        The gradients of x (None unless needed), w and b.
    """
    if x.is_cuda and not torch.is_grad_enabled():
        sum_dy, sum_dy_xmu, dw, db = gradient_sums(dy, x, w, mean, invstd)
        if not needs_dx:
            return None, dw, db
        return input_gradient(dy, x, w, mean, invstd, sum_dy, sum_dy_xmu, x.numel() // x.shape[1]), dw, db
    # This kernel has a derivative of its own, also on CUDA: it is the route of double backward.
    dx, dw, db = _aten.native_batch_norm_backward(
        dy, x, w, None, None, mean, invstd, True, 0.0, [needs_dx, True, True]
    )
    return (dx if needs_dx else None), dw, db


def gradient_sums(
    dy: Tensor, x: Tensor, w: Tensor, mean: Tensor, invstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """CUDA: per channel the sums of dy and of dy * (x - mean), then the gradients of w and b."""
    sums: tuple[Tensor, Tensor, Tensor, Tensor] = torch.batch_norm_backward_reduce(
        _dense(dy), _dense(x), mean, invstd, w, True, True, True
    )
    return sums


def input_gradient(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    mean: Tensor,
    invstd: Tensor,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: int,
) -> Tensor:
    """CUDA: w / std * (dy - sum_dy / count - (x - mean) / std**2 * sum_dy_xmu / count)."""
    counts = torch.full((1,), count, dtype=torch.int32, device=x.device)
    return torch.batch_norm_backward_elemt(_dense(dy), _dense(x), mean, invstd, w, sum_dy, sum_dy_xmu, counts)


def _dense(x: Tensor) -> Tensor:
    """As it is when contiguous in one of the formats that the CUDA kernels know, else copied."""
    if x.is_contiguous():
        return x
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x
    if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
        return x
    return x.contiguous()
