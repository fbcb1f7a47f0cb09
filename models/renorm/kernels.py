"""What a device's kernels do for Batch Renormalization; ``cpu.py`` and ``cuda.py`` do it."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


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


class Kernels(NamedTuple):
    """The four pieces of work on every element; ``cpu.py`` documents each."""

    batch_statistics: Callable[[Tensor, float], Statistics]
    normalize: Callable[[Tensor, Tensor, Tensor, Statistics], Tensor]
    gradient_sums: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    input_gradient: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]
