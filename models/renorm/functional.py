"""Batch Renormalization as a function, for those who keep the statistics themselves."""

import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from .autograd import KernelCall, KernelRenorm, TorchRenorm, dense, kernels_take
from .gradient import GradientRule
from .statistics import batch_statistics, correct


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
    rmax, dmax, momentum = (
        value.to(running_mean) if isinstance(value, Tensor) else running_mean.new_full((), value)
        for value in (rmax, dmax, momentum)
    )
    output: Tensor
    if kernels_take(input, mask, None, running_mean, weight):
        call = KernelCall(running_mean, running_var, rmax, dmax, momentum, eps)
        output = KernelRenorm.apply(dense(input), weight, bias, None, call)
        return output
    with torch.no_grad():
        mean, std, count = batch_statistics(input, eps, mask)
        r, d = correct(mean, std, running_mean, running_var, eps, rmax, dmax, momentum)
    rule = None if count is None else GradientRule(values=count)
    output = TorchRenorm.apply(input, mask, weight, bias, mean, std, r, d, rule)
    return output
