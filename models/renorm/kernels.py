"""What a device's kernels do for Batch Renormalization; ``cpu.py`` and ``cuda.py`` do it."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Shifted(NamedTuple):
    """A batch less a guess of its mean, which the output may replace in memory.

    Attributes:
        values: the input less ``guess``.
        guess: (C,).
        one: ones, (C,).
    """

    values: Tensor
    guess: Tensor
    one: Tensor


class Statistics(NamedTuple):
    """What one batch gives.

    Attributes:
        mean: (C,).
        std: biased standard deviation with epsilon inside the root, (C,).
        invstd: 1 / std, (C,).
        shifted: by-product of some ways to the statistics, of use to ``normalize``.
    """

    mean: Tensor
    std: Tensor
    invstd: Tensor
    shifted: Shifted | None = None


class Kernels(NamedTuple):
    """The four pieces of work on every element; ``cpu.py`` documents each."""

    batch_statistics: Callable[[Tensor, float, Tensor], Statistics]
    normalize: Callable[[Tensor, Tensor, Tensor, Statistics], Tensor]
    gradient_sums: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    input_gradient: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]
