"""Batch Renormalization as a function, for callers that keep the running statistics themselves."""

import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from .autograd import KernelRenorm, TorchRenorm, dense, kernels_take
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
    """Batch Renormalization, as ``BatchRenorm`` describes it, with the arguments of torch's ``batch_norm``.

    Args:
        input: (N, C, ...), floating point.
        running_mean: (C,), float32 or float64; changed in place in training.
        running_var: (C,), the square of the averaged deviation, less eps; changed in place in training.
        weight: gamma, (C,) or None.
        bias: beta, (C,) or None.
        training: normalize by the batch's statistics and correct; else by the running statistics.
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
    x, mean, var = input, running_mean, running_var
    output: Tensor
    if mask is None and kernels_take(x, None, mean, weight):
        output = KernelRenorm.apply(
            dense(x), weight, bias, None, mean, var, rmax, dmax, momentum, eps, False, None, None
        )
        return output
    with torch.no_grad():
        batch_mean, batch_std, count = batch_statistics(x, eps, mask)
        r, d = correct(batch_mean, batch_std, mean, var, eps, rmax, dmax, momentum)
    output = TorchRenorm.apply(x, weight, bias, batch_mean, batch_std, r, d, mask, count, None, None)
    return output
