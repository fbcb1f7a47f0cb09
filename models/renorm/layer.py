"""Batch Renormalization as modules: drop-in replacements of torch's BatchNorm layers."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import apply
from .cpu import Statistics
from .moving import GradientStatistics
from .recompute import CallMemory, Record, may_be_recomputed, recomputing
from .statistics import Running, clipped_fractions, correction, update_running

GradientKind = Literal["batch", "moving"]


class BatchRenorm(nn.Module):
    """What the layers of every dimension share; use ``BatchRenorm1d``, ``2d`` or ``3d``.

    In training a batch is normalized by its own mean and deviation, then corrected towards the running
    statistics: y = gamma ((x - mean) / std r + d) + beta, with r = std / running_std clipped to [1 / rmax, rmax] and
    d = (mean - running_mean) / running_std clipped to [-dmax, dmax], both without gradient. In evaluation it is
    batch normalization by the running statistics. Source: Ioffe, arXiv 1702.03275, algorithm 1.

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
            that it subtracts by moving averages over earlier batches.
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

    _version = 2  # as BatchNorm's: 2 has num_batches_tracked
    _dimensions: tuple[int, ...] = ()

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    rmax: Tensor
    dmax: Tensor
    momentum: Tensor
    clipped: Tensor
    gradient_mean: Tensor
    gradient_projection: Tensor
    gradient_batches: Tensor
    gradient_momentum: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        *,
        rmax: float = 3.0,
        dmax: float = 5.0,
        scale: bool = True,
        gradient_statistics: GradientKind = "batch",
        gradient_momentum: float = 0.05,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if gradient_statistics not in ("batch", "moving"):
            raise ValueError(f'gradient_statistics is "batch" or "moving", not {gradient_statistics!r}')
        self.num_features = num_features
        self.eps = eps
        self.affine = affine
        self.scale = scale
        self.gradient_statistics: GradientKind = gradient_statistics
        self.track_running_stats = True
        self.cumulative = momentum is None
        self.frozen = False
        self.monitor = False
        self._memory = CallMemory()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        if affine:
            self.weight = nn.Parameter(torch.ones(num_features, **place), requires_grad=scale)
            self.bias = nn.Parameter(torch.zeros(num_features, **place))
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
        self.register_buffer("running_mean", torch.zeros(num_features, **place))
        self.register_buffer("running_var", torch.ones(num_features, **place))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long, device=device))
        for name in ("rmax", "dmax", "momentum", "gradient_momentum"):
            self.register_buffer(name, torch.zeros((), **place), persistent=False)
        self.register_buffer("clipped", torch.zeros(2, device=device), persistent=False)
        if gradient_statistics == "moving":
            for name in ("gradient_mean", "gradient_projection"):
                self.register_buffer(name, torch.zeros(num_features, **place), persistent=False)
            self.register_buffer("gradient_batches", torch.zeros((), **place), persistent=False)
        self._limits = (rmax, dmax, 0.0 if momentum is None else momentum, gradient_momentum)
        self.set_limits(rmax, dmax, momentum)
        self._set("gradient_momentum", gradient_momentum)

    def set_limits(
        self, rmax: float | None = None, dmax: float | None = None, momentum: float | None = None
    ) -> None:
        """Change how far the correction may go, or the weight of a batch; None leaves a value as it is.

        Nothing is read back from the device, and a compiled model is not compiled again.

        Args:
            rmax: largest r, at least 1.
            dmax: largest absolute d, at least 0.
            momentum: weight of a batch in the moving averages, in [0, 1].

        Raises:
            ValueError: on a value out of range.
        """
        if rmax is not None:
            if not rmax >= 1.0:
                raise ValueError(f"rmax is {rmax}: r is clipped to [1 / rmax, rmax], so give at least 1")
            self.rmax.fill_(rmax)
        if dmax is not None:
            if not dmax >= 0.0:
                raise ValueError(f"dmax is {dmax}: d is clipped to [-dmax, dmax], so give at least 0")
            self.dmax.fill_(dmax)
        if momentum is not None:
            self._set("momentum", momentum)
            self.cumulative = False

    def _set(self, name: str, value: float) -> None:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} is {value}: give the weight of a batch, from 0 to 1")
        getattr(self, name).fill_(value)

    def reset_running_stats(self) -> None:
        """Forget every batch seen: mean 0, variance 1, as BatchNorm starts."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()
        if self.gradient_statistics == "moving":
            self.gradient_mean.zero_()
            self.gradient_projection.zero_()
            self.gradient_batches.zero_()

    def reset_parameters(self) -> None:
        """All as after construction, also after ``to_empty`` of a layer built on the meta device."""
        self.reset_running_stats()
        for name, value in zip(("rmax", "dmax", "momentum", "gradient_momentum"), self._limits, strict=True):
            getattr(self, name).fill_(value)
        self.clipped.zero_()
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: A002 - BatchNorm's name for it
        """Normalize a batch.

        Args:
            input: (N, C, ...), floating point.
            mask: (N, ...) boolean, True where a position is real; padding does not enter the statistics,
                though it is normalized like the rest. None takes all.

        Returns:
            The shape, type and memory format of the input.
        """
        self._check_input(input)
        if not self.training or self.frozen:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        apply.check_values(input)
        input = apply.prepare(input, mask)  # noqa: A001
        with torch.no_grad():
            batch, count = self._batch_statistics(input, mask)
            r, d = self._correction(batch.mean, batch.std)
        return self._normalize(input, mask, count, batch, r, d, self._gradient())

    def _gradient(self) -> GradientStatistics | None:
        if self.gradient_statistics == "batch":
            return None
        return GradientStatistics(
            self.gradient_mean, self.gradient_projection, self.gradient_batches, self.gradient_momentum
        )

    def _check_input(self, input: Tensor) -> None:  # noqa: A002
        if input.dim() not in self._dimensions:
            expected = " or ".join(f"{n}D" for n in self._dimensions)
            raise ValueError(f"{type(self).__name__} expects {expected} input, got {input.dim()}D")
        if input.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} has {self.num_features} channels, the input {input.shape[1]}"
            )

    def _batch_statistics(self, x: Tensor, mask: Tensor | None) -> tuple[Statistics, Tensor | None]:
        return apply.batch_statistics(x, self.eps, mask)

    def _normalize(self, x: Tensor, mask: Tensor | None, count: Tensor | None, *rest: Any) -> Tensor:
        return apply.normalize(x, mask, count, self.weight, self.bias, *rest)

    def _correction(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """The correction, then one step of the moving averages; a recomputed pass gets its first one's."""
        compiling = torch.compiler.is_compiling()
        if not compiling and len(self._memory) and recomputing():
            return self._memory.recall(mean, std)
        running = Running(self.running_mean, self.running_var, self.eps)
        running_std = running.deviation(mean.dtype)
        shift = mean - self.running_mean
        r, d = correction(shift, std, running_std, self.rmax, self.dmax)
        if self.monitor:
            self.clipped.copy_(clipped_fractions(shift, std, running_std, r, d))
        batches = self.num_batches_tracked.add_(1)
        momentum = batches.to(mean.dtype).reciprocal() if self.cumulative else self.momentum
        update_running(running, shift, std, running_std, momentum)
        if not compiling and may_be_recomputed():
            self._memory.remember(Record(mean, std, r, d))
        return r, d

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        """Accept BatchNorm's oldest files, which do not count batches."""
        key = prefix + "num_batches_tracked"
        if local_metadata.get("version", 1) < 2 and key not in state_dict:
            state_dict[key] = torch.zeros_like(self.num_batches_tracked)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry no calls that wait for recomputation."""
        return {**self.__dict__, "_memory": CallMemory()}

    def extra_repr(self) -> str:
        """The settings, for printing."""
        text = f"{self.num_features}, eps={self.eps}, affine={self.affine}"
        if not self.running_mean.is_meta:
            momentum = None if self.cumulative else round(float(self.momentum), 6)
            text += f", momentum={momentum}, rmax={float(self.rmax):g}, dmax={float(self.dmax):g}"
        if not self.scale:
            text += ", scale=False"
        if self.gradient_statistics != "batch":
            text += f", gradient_statistics={self.gradient_statistics!r}"
        return text


class BatchRenorm1d(BatchRenorm):
    """Batch Renormalization of (N, C) or (N, C, L) input; see ``BatchRenorm``."""

    _dimensions = (2, 3)


class BatchRenorm2d(BatchRenorm):
    """Batch Renormalization of (N, C, H, W) input; see ``BatchRenorm``."""

    _dimensions = (4,)


class BatchRenorm3d(BatchRenorm):
    """Batch Renormalization of (N, C, D, H, W) input; see ``BatchRenorm``."""

    _dimensions = (5,)
