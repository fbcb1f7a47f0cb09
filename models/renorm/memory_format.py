"""Dense memory formats, which the native kernels are fast on."""

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def as_dense(x: Tensor) -> Tensor:
    """The tensor itself when contiguous or channels_last, else a contiguous copy."""
    last = _CHANNELS_LAST.get(x.dim())
    if x.is_contiguous() or (last is not None and x.is_contiguous(memory_format=last)):
        return x
    return x.contiguous()


def like(x: Tensor, pattern: Tensor) -> Tensor:
    """The tensor itself when it lies in memory as the pattern does, else a copy that does.

    Gradients come expanded from a mean or a sum, and in the other memory format from some convolutions.
    """
    if x.stride() == pattern.stride():
        return x
    return torch.empty_like(pattern, dtype=x.dtype).copy_(x)
