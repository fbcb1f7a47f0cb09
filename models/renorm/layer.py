"""Batch Renormalization as modules: drop-in replacements of torch's BatchNorm layers."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from . import fused
from .cpu import CPU
from .cuda import CUDA
from .functions import NativeRenorm
from .gradient import GradientRule
from .kernels import Statistics
from .memory_format import as_dense
from .plain import PlainRenorm
from .plain import batch_statistics as plain_statistics
from .recompute import CallMemory, Record, may_be_recomputed, recomputing
from .state import RenormState
from .statistics import Running, clipped_fractions, correction, update_running


class BatchRenorm(RenormState):
    """What the layers of every dimension share; use ``BatchRenorm1d``, ``2d`` or ``3d``.

    In training a batch is normalized by its own mean and deviation, then corrected towards the running
    statistics: y = gamma ((x - mean) / std r + d) + beta, with r = std / running_std clipped to
    [1 / rmax, rmax] and d = (mean - running_mean) / running_std clipped to [-dmax, dmax], both without
    gradient. In evaluation it is batch normalization by the running statistics. Source: Ioffe,
    arXiv 1702.03275, algorithm 1.

    ``state_dict`` has the keys and the meaning of BatchNorm's, and loads strictly both ways. ``rmax``,
    ``dmax`` and ``momentum`` are tensors without dimensions that no state dictionary holds; change them
    through ``set_limits`` or a ``RenormSchedule``, also between steps of a compiled model.

    Args:
        num_features: channels C, the second dimension of the input.
        eps: added to the variance inside the root.
        momentum: weight of a batch in the moving averages (of the mean and of the standard deviation); None
            averages over all batches.
        affine: whether gamma (``weight``) and beta (``bias``) exist.
        rmax: largest r, at least 1. With rmax=1 and dmax=0 training is batch normalization.
        dmax: largest absolute d, at least 0.
        scale: False keeps gamma at 1 and out of the optimizer, as the paper does where a ReLU follows.
        gradient_statistics: "batch" for the paper's gradient; "moving" replaces the two batch statistics
            that it subtracts by moving averages over batches.
        gradient_momentum: weight of a batch in those moving averages.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    Attributes:
        frozen: normalizes by the running statistics in training, too, and leaves them alone.
        monitor: writes the shares of clipped r and d to ``clipped``, (2,), at each training step.

    Raises:
        ValueError: on a setting out of range; in ``forward`` on a wrong number of dimensions or channels,
            and in training on one value per channel, which has no variance.
    """

    _dimensions: tuple[int, ...] = ()

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._memory = CallMemory()

    def forward(
        self,
        input: Tensor,  # noqa: A002 - BatchNorm's name for it
        mask: Tensor | None = None,
        *,
        residual: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        """Normalize a batch, and on request do what usually follows, too; the fused kernels do all in one.

        Args:
            input: (N, C, ...), floating point.
            mask: (N, ...) boolean, True where a position is real; padding does not enter the statistics,
                though it is normalized like the rest. None takes all.
            residual: added to the normalized batch; the input's shape.
            relu: cut the result at zero.

        Returns:
            The shape, type and memory format of the input.
        """
        self._check_input(input)
        if not self.training or self.frozen:
            return _followed(self._evaluate(input), residual, relu)
        self._check_values(input)
        compiling = torch.compiler.is_compiling()
        remember = not compiling and may_be_recomputed()
        if not (compiling or remember) and self._fusable(input, mask, residual):
            return self._fused(as_dense(input), residual, relu)
        return _followed(self._normalize(input, mask, compiling, remember), residual, relu)

    def _fusable(self, x: Tensor, mask: Tensor | None, residual: Tensor | None) -> bool:
        """Whether the fused kernels do it; what is recomputed takes the others, in both passes."""
        if mask is not None or not fused.takes(x, residual, self.running_mean, self.weight):
            return False
        return not (len(self._memory) and recomputing())

    def _fused(self, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        at: dict[str, Any] = self._buffers

        def work(x: Tensor, *affine_and_residual: Tensor | None) -> tuple[Tensor, Tensor]:
            clipped = (
                x.new_empty(2, self.num_features, dtype=at["running_mean"].dtype) if self.monitor else None
            )
            y, saved = fused.forward(
                *(x, *affine_and_residual, at["running_mean"], at["running_var"]),
                *(at["num_batches_tracked"], at["rmax"], at["dmax"], at["momentum"]),
                *(self.eps, self.cumulative, relu, clipped),
            )
            if clipped is not None:
                self.clipped.copy_(clipped.mean(1))
            return y, saved

        moving = self._moving_averages()
        output: Tensor = fused.FusedRenorm.apply(x, self.weight, self.bias, residual, relu, moving, work)
        return output

    def _normalize(self, input: Tensor, mask: Tensor | None, compiling: bool, remember: bool) -> Tensor:  # noqa: A002
        if not compiling and self._native(input, mask):

            def prepare(x: Tensor) -> tuple[Statistics, Tensor, Tensor, GradientRule | None]:
                batch, count = self._batch_statistics(x, None, True)
                return batch, *self._correction(batch.mean, batch.std, remember), self._rule(count)

            output: Tensor = NativeRenorm.apply(as_dense(input), self.weight, self.bias, prepare)
            return output
        with torch.no_grad():
            (mean, std, *_), count = self._batch_statistics(input, mask, False)
            r, d = self._correction(mean, std, remember)
        rule = self._rule(count)
        plain: Tensor = PlainRenorm.apply(input, mask, count, self.weight, self.bias, mean, std, r, d, rule)
        return plain

    def _native(self, x: Tensor, mask: Tensor | None) -> bool:
        """Whether there are native kernels for it: on a CPU or CUDA, without a mask."""
        return mask is None and (x.is_cpu or x.is_cuda)

    def _evaluate(self, x: Tensor) -> Tensor:
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        if weight is not None and weight.dtype != self.running_mean.dtype:  # parameters in half precision
            weight = weight.to(self.running_mean.dtype)
            bias = bias if bias is None else bias.to(self.running_mean.dtype)
        return functional.batch_norm(
            x, self.running_mean, self.running_var, weight, bias, False, 0.0, self.eps
        )

    def _rule(self, count: Tensor | None) -> GradientRule | None:
        del count  # of the synchronized layer
        moving = self._moving_averages()
        return None if moving is None else GradientRule(moving)

    def _check_input(self, input: Tensor) -> None:  # noqa: A002
        if input.dim() not in self._dimensions:
            expected = " or ".join(f"{n}D" for n in self._dimensions)
            raise ValueError(f"{type(self).__name__} expects {expected} input, got {input.dim()}D")
        if input.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} has {self.num_features} channels, the input {input.shape[1]}"
            )

    def _check_values(self, x: Tensor) -> None:
        if x.numel() // max(x.shape[1], 1) < 2:
            raise ValueError(
                f"one value per channel has no variance (input {tuple(x.shape)}): train on larger batches, "
                "or call eval() or freeze the layer"
            )

    def _batch_statistics(
        self, x: Tensor, mask: Tensor | None, native: bool
    ) -> tuple[Statistics, Tensor | None]:
        """Mean and deviation and, with a mask, the number of values of each channel."""
        if native:
            kernels, buffers = CUDA if x.is_cuda else CPU, cast(dict[str, Tensor], self._buffers)
            return kernels.batch_statistics(x, self.eps, buffers["epsilon"]), None
        mean, std, count = plain_statistics(x, self.eps, mask)
        return Statistics(mean, std, std.reciprocal()), count

    def _correction(self, mean: Tensor, std: Tensor, remember: bool) -> tuple[Tensor, Tensor]:
        """The correction, then one step of the moving averages; a recomputed pass gets its first one's."""
        if not torch.compiler.is_compiling() and len(self._memory) and recomputing():
            return self._memory.recall(mean, std)
        at: dict[str, Any] = (
            self._buffers
        )  # attribute access to buffers costs as much as the arithmetic on them
        running = Running(at["running_mean"], at["running_var"], at["epsilon"])
        running_std = running.deviation()
        shift = mean - running.mean
        r, d = correction(shift, std, running_std, at["rmax"], at["dmax"])
        if self.monitor:
            self.clipped.copy_(clipped_fractions(shift, std, running_std, r, d))
        batches = at["num_batches_tracked"].add_(1)
        momentum = batches.to(mean.dtype).reciprocal() if self.cumulative else at["momentum"]
        update_running(running, shift, std, running_std, momentum)
        if remember:
            self._memory.remember(Record(mean, std, r, d))
        return r, d

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry no calls that wait for recomputation."""
        return {**self.__dict__, "_memory": CallMemory()}


def _followed(y: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """What the fused kernels do after normalization, in place as far as that changes nothing."""
    if residual is not None:
        alike = residual.dtype == y.dtype and residual.shape == y.shape
        y = y.add_(residual) if alike else y + residual
    return y.relu_() if relu else y


class BatchRenorm1d(BatchRenorm):
    """Batch Renormalization of (N, C) or (N, C, L) input; see ``BatchRenorm``."""

    _dimensions = (2, 3)


class BatchRenorm2d(BatchRenorm):
    """Batch Renormalization of (N, C, H, W) input; see ``BatchRenorm``."""

    _dimensions = (4,)


class BatchRenorm3d(BatchRenorm):
    """Batch Renormalization of (N, C, D, H, W) input; see ``BatchRenorm``."""

    _dimensions = (5,)
