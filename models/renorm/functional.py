"""Batch Renormalization as a function, for those who keep the statistics themselves."""

import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from . import fused
from .cpu import CPU
from .cuda import CUDA
from .functions import NativeRenorm
from .kernels import Statistics
from .memory_format import as_dense
from .plain import PlainRenorm
from .plain import batch_statistics as plain_statistics
from .statistics import Running, correction, update_running


def batch_renorm(
    input: Tensor,  # noqa: A002 - as torch's batch_norm names it
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.01,
    eps: float = 1e-5,
    *,
    rmax: float | Tensor = 3.0,
    dmax: float | Tensor = 5.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Batch Renormalization with ``torch.nn.functional.batch_norm``'s arguments; ``BatchRenorm`` says
    what it does.

    Args:
        input: (N, C, ...), floating point.
        running_mean: (C,), float32 or float64; changed in place in training.
        running_var: (C,), square of the averaged deviation less eps; changed in place in training.
        weight: gamma, (C,) or None.
        bias: beta, (C,) or None.
        training: normalize by the batch and correct, rather than by the running statistics.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance inside the root.
        rmax: largest r, at least 1.
        dmax: largest absolute d, at least 0.
        mask: (N, ...) boolean, True where a position is real; None takes all.

    Returns:
        The shape and type of the input.
    """
    if not training:
        return batch_norm(input, running_mean, running_var, weight, bias, False, 0.0, eps)
    rmax, dmax, momentum, epsilon = (
        value.to(running_mean) if isinstance(value, Tensor) else running_mean.new_full((), value)
        for value in (rmax, dmax, momentum, eps)
    )

    def correct(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        running = Running(running_mean, running_var, epsilon)
        running_std = running.deviation()
        shift = mean - running_mean
        r, d = correction(shift, std, running_std, rmax, dmax)
        update_running(running, shift, std, running_std, momentum)
        return r, d

    def prepare(x: Tensor) -> tuple[Statistics, Tensor, Tensor, None]:
        batch = (CUDA if x.is_cuda else CPU).batch_statistics(x, eps, epsilon)
        return batch, *correct(batch.mean, batch.std), None

    output: Tensor
    if mask is None and not torch.compiler.is_compiling() and fused.takes(input, None, running_mean, weight):

        def work(x: Tensor, *affine_and_residual: Tensor | None) -> tuple[Tensor, Tensor]:
            settings = (None, rmax, dmax, momentum, eps, False, False, None)
            return fused.forward(x, *affine_and_residual, running_mean, running_var, *settings)

        output = fused.FusedRenorm.apply(as_dense(input), weight, bias, None, False, None, work)
        return output
    if mask is None and (input.is_cpu or input.is_cuda) and not torch.compiler.is_compiling():
        output = NativeRenorm.apply(as_dense(input), weight, bias, prepare)
        return output
    with torch.no_grad():
        mean, std, count = plain_statistics(input, eps, mask)
        r, d = correct(mean, std)
    output = PlainRenorm.apply(input, mask, count, weight, bias, mean, std, r, d, None)
    return output
