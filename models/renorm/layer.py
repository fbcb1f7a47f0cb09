"""Batch Renormalization as modules: drop-in replacements of torch's BatchNorm layers."""

from collections.abc import Callable
from math import inf, isfinite
from typing import Any, Literal, Self, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from .autograd import GradientAverages, KernelRenorm, TorchRenorm, dense, kernels_take
from .recompute import CallMemory, may_be_recomputed, recomputing
from .statistics import HALF, batch_statistics, correct

GradientKind = Literal["batch", "moving", "shared"]
WarmupShape = Literal["linear", "step"]

_RANGES = {"rmax": (1, inf), "dmax": (0, inf), "momentum": (0, 1), "gradient_momentum": (0, 1)}


class BatchRenorm(nn.Module):
    """What the layers of every dimension share; use ``BatchRenorm1d``, ``2d`` or ``3d``.

    In training a batch is normalized by its own mean and deviation, then corrected towards the running
    statistics: y = gamma ((x - mean) / std r + d) + beta, with r = std / running_std clipped to
    [1 / rmax, rmax] and d = (mean - running_mean) / running_std clipped to [-dmax, dmax], both without
    gradient. In evaluation it is batch normalization by the running statistics. Source: Ioffe,
    arXiv 1702.03275, algorithm 1.

    ``state_dict`` has the keys and the meaning of BatchNorm's, and loads strictly both ways. ``rmax``,
    ``dmax`` and ``momentum`` are 0-dimensional tensors outside the state dictionary; change them through
    ``set_limits`` or a ``RenormSchedule``, also between steps of a compiled model.

    Args:
        num_features: channels C, the second dimension of the input.
        eps: added to the variance inside the root.
        momentum: weight of a batch in the running mean and deviation; None averages over all batches.
        affine: whether gamma (``weight``) and beta (``bias``) exist.
        rmax: largest r, at least 1. With rmax=1 and dmax=0 training is batch normalization.
        dmax: largest absolute d, at least 0.
        scale: False keeps gamma at 1 and out of the optimizer, as the paper does where a ReLU follows.
        gradient_statistics: "batch" for the paper's gradient; "moving" takes the two statistics that it
            subtracts from the recent batches together, "shared" from those of all processes (one small
            all-reduce in the backward pass; every batch weighs the same).
        gradient_momentum: weight of a batch, or of the processes' batches of one step, among those. While a
            ``RenormSchedule`` or a warm-up widens the limits, it falls from 1, which is the paper's gradient.
        warmup_steps: training batches over which the limits widen from 1 and 0 to rmax and dmax; None for no
            warm-up. ``num_batches_tracked`` counts them, so a checkpoint resumes it. Not with a
            ``RenormSchedule``.
        warmup_shape: "linear", or "step" for batch normalization until the warm-up ends.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    Attributes:
        frozen: normalize by the running statistics in training, too, and leave them unchanged.
        monitor: write the shares of clipped r and d to ``clipped``, (2,), at each training step.

    Raises:
        ValueError: on a setting out of range; in ``forward`` on a wrong number of dimensions or channels,
            and in training on one value per channel, which has no variance.
    """

    _dimensions: tuple[int, ...] = ()
    _version = 2  # as BatchNorm's: 2 has num_batches_tracked

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    rmax: Tensor
    dmax: Tensor
    momentum: Tensor
    clipped: Tensor
    gradient_moments: Tensor
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
        warmup_steps: int | None = None,
        warmup_shape: WarmupShape = "linear",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if gradient_statistics not in get_args(GradientKind):
            known = ", ".join(map(repr, get_args(GradientKind)))
            raise ValueError(f"gradient_statistics is one of {known}, not {gradient_statistics!r}")
        if warmup_shape not in ("linear", "step"):
            raise ValueError(f'warmup_shape is "linear" or "step", not {warmup_shape!r}')
        if warmup_steps is not None and warmup_steps < 1:
            raise ValueError(f"warmup_steps is {warmup_steps}: give at least 1, or None for no warm-up")
        self.num_features, self.eps, self.affine, self.scale = num_features, eps, affine, scale
        self.gradient_statistics: GradientKind = gradient_statistics
        self.final_gradient_momentum = None if gradient_statistics == "batch" else gradient_momentum
        self.warmup_steps, self.warmup_shape = warmup_steps, warmup_shape
        self.track_running_stats = True
        self.frozen = self.monitor = False
        self._memory = CallMemory()
        # Statistics stay in float32 at least, whatever the parameters' type: small steps would be lost below.
        exact = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        if affine:
            self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype), scale)
            self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=exact))
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=exact))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long, device=device))
        if gradient_statistics != "batch":
            moments = self.running_mean.new_zeros(4, num_features)
            self.register_buffer("gradient_moments", moments, persistent=False)
            self.register_buffer("gradient_batches", self.running_mean.new_zeros(()), persistent=False)
        for name in _RANGES:
            self.register_buffer(name, self.running_mean.new_zeros(()), persistent=False)
        self.register_buffer("clipped", torch.zeros(2, device=device), persistent=False)
        # The settings as they were given: the buffers round them to their type.
        self._given: dict[str, float] = {}
        self.set_limits(rmax, dmax, momentum, gradient_momentum)

    def set_limits(
        self,
        rmax: float | None = None,
        dmax: float | None = None,
        momentum: float | None = None,
        gradient_momentum: float | None = None,
    ) -> None:
        """Change how far the correction may go, or the weight of a batch; None leaves a value as it is.

        Nothing is read back from the device, and a compiled model is not compiled again.

        Args:
            rmax: largest r, at least 1.
            dmax: largest absolute d, at least 0.
            momentum: weight of a batch in the running statistics, in [0, 1].
            gradient_momentum: weight of a batch in the gradient statistics, in [0, 1].

        Raises:
            ValueError: on a value out of range.
        """
        settings = {"rmax": rmax, "dmax": dmax, "momentum": momentum, "gradient_momentum": gradient_momentum}
        for name, value in settings.items():
            if value is None:
                continue
            low, high = _RANGES[name]
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}: give a number from {low} to {high}")
            if self.warmup_steps is not None and not isfinite(value):
                raise ValueError(f"{name} is {value}: a warm-up needs a finite limit")
            self._given[name] = value
            getattr(self, name).fill_(value)
        self.cumulative = "momentum" not in self._given

    def limits(self) -> tuple[Tensor, Tensor]:
        """The largest r and d of the next batch, 0-dimensional tensors, as far as a warm-up has come."""
        if (done := self._warmed_up()) is None:
            return self.rmax, self.dmax
        return 1 + (self.rmax - 1) * done, self.dmax * done

    def _warmed_up(self) -> Tensor | None:
        """How far a warm-up has come, from 0 to 1; None without one."""
        if self.warmup_steps is None:
            return None
        done = (self.num_batches_tracked.to(self.rmax.dtype) / self.warmup_steps).clamp(max=1)
        return done.floor() if self.warmup_shape == "step" else done

    def forward(
        self,
        input: Tensor,  # noqa: A002 - BatchNorm's name for it
        mask: Tensor | None = None,
        *,
        residual: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        """Normalize a batch; on request add a residual and apply a ReLU, which the kernels do in one pass.

        Args:
            input: (N, C, ...), floating point.
            mask: (N, ...) boolean, True where a position is real; padding does not enter the statistics,
                though it is normalized like the rest. None takes all.
            residual: added to the normalized batch; the input's shape.
            relu: replace what is negative in the result by zero.

        Returns:
            The shape, type and memory format of the input.
        """
        self._check(input)
        mean, var, eps = self.running_mean, self.running_var, self.eps
        if not self.training or self.frozen:
            # Parameters may be in half precision.
            weight, bias = (p if p is None else p.to(mean.dtype) for p in (self.weight, self.bias))
            y = functional.batch_norm(input, mean, var, weight, bias, False, 0.0, eps)
            return _finish(y, residual, relu)
        group = self._group()
        if group is None and input.numel() // max(input.shape[1], 1) < 2:
            raise ValueError(
                f"one value per channel has no variance (input {tuple(input.shape)}): train on larger "
                "batches, or call eval() or freeze the layer"
            )
        compiling = torch.compiler.is_compiling()
        again = not compiling and len(self._memory) > 0 and recomputing()
        remember = not compiling and not again and may_be_recomputed()
        weight, bias, averages, (rmax, dmax) = self.weight, self.bias, self.gradient_averages(), self.limits()
        if not again:
            self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if self.cumulative:
            momentum = self.num_batches_tracked.to(momentum.dtype).reciprocal()
        output: Tensor

        # The two passes of a checkpoint must take the same route.
        by_torch = again or remember or mask is not None or group is not None
        by_torch = by_torch or (averages is not None and averages.group is not None)
        if not by_torch and kernels_take(input, residual, mean, weight):
            clipped = mean.new_empty(2, self.num_features) if self.monitor else None
            x = dense(input)
            output = KernelRenorm.apply(
                x, weight, bias, residual, mean, var, rmax, dmax, momentum, eps, relu, clipped, averages
            )
            if clipped is not None:
                self.clipped.copy_(clipped.mean(1))
            return output

        with torch.no_grad():
            batch_mean, std, count = batch_statistics(input, eps, mask, group)
            if again:
                r, d = self._memory.recall(batch_mean, std)
            else:
                clipped = self.clipped if self.monitor else None
                r, d = correct(batch_mean, std, mean, var, eps, rmax, dmax, momentum, clipped)
            if remember:
                self._memory.remember(batch_mean, r, d)
        output = TorchRenorm.apply(input, weight, bias, batch_mean, std, r, d, mask, count, averages, group)
        return _finish(output, residual, relu)

    def _check(self, x: Tensor) -> None:
        if x.dim() not in self._dimensions:
            expected = " or ".join(f"{n}D" for n in self._dimensions)
            raise ValueError(f"{type(self).__name__} expects {expected} input, got {x.dim()}D")
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} has {self.num_features} channels, the input {x.shape[1]}"
            )

    def _group(self) -> dist.ProcessGroup | None:
        """The processes whose batches are normalized as one; None for this process alone."""
        return None

    def gradient_averages(self) -> GradientAverages | None:
        """The moving gradient statistics, the layer's own tensors; None with the batch's."""
        if self.gradient_statistics == "batch":
            return None
        group = processes() if self.gradient_statistics == "shared" else None
        momentum = self.gradient_momentum
        if (done := self._warmed_up()) is not None:
            momentum = 1 + (momentum - 1) * done
        return GradientAverages(self.gradient_moments, self.gradient_batches, momentum, group)

    def averaged_stats(self) -> list[Tensor]:
        """The statistics as they may be averaged over several layers: running mean and deviation, (C,).

        Four more follow unless gradient statistics are the batch's.
        """
        stats = [self.running_mean, (self.running_var + self.eps).sqrt_()]
        if self.gradient_statistics != "batch":
            stats += self.gradient_moments.unbind()
        return stats

    def set_averaged_stats(self, stats: list[Tensor]) -> None:
        """Set the statistics from what ``averaged_stats`` gives."""
        self.running_mean.copy_(stats[0])
        self.running_var.copy_(stats[1].square() - self.eps)
        if self.gradient_statistics != "batch":
            self.gradient_moments.copy_(torch.stack(stats[2:]))

    def reset_running_stats(self) -> None:
        """Forget every batch seen: mean 0, variance 1, as BatchNorm starts."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()
        if self.gradient_statistics != "batch":
            self.gradient_moments.zero_()
            self.gradient_batches.zero_()

    def reset_parameters(self) -> None:
        """Set statistics, gamma and beta as after construction, also of a layer built on the meta device."""
        self.reset_running_stats()
        self.set_limits(**self._given)
        self.clipped.zero_()
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the layer; the statistics follow to the device, but not below float32.

        The settings are as exact in the new type as if the layer had been made in it.
        """
        before = {name: b for name, b in self.named_buffers() if b.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, exact in before.items():
            after = getattr(self, name)
            if after.dtype in HALF:
                setattr(self, name, exact.to(after.device))
        self.set_limits(**self._given)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        """Accept BatchNorm's oldest files, which do not count batches."""
        key = prefix + "num_batches_tracked"
        if local_metadata.get("version", 1) < 2 and key not in state_dict:
            state_dict[key] = torch.zeros_like(self.num_batches_tracked)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def __getstate__(self) -> dict[str, Any]:
        """Leave calls that wait for recomputation out of copies and pickles."""
        return {**self.__dict__, "_memory": CallMemory()}

    def extra_repr(self) -> str:
        """The settings, for printing."""
        text = f"{self.num_features}, eps={self.eps}, affine={self.affine}"
        if not self.running_mean.is_meta:
            momentum = None if self.cumulative else round(self._given["momentum"], 6)
            text += f", momentum={momentum}, rmax={self._given['rmax']:g}, dmax={self._given['dmax']:g}"
        usual = {
            "scale": True,
            "gradient_statistics": "batch",
            "warmup_steps": None,
            "warmup_shape": "linear",
        }
        unusual = [name for name, value in usual.items() if getattr(self, name) != value]
        return text + "".join(f", {name}={getattr(self, name)!r}" for name in unusual)


def processes(group: dist.ProcessGroup | None = None) -> dist.ProcessGroup | None:
    """The group, by default of all processes; None where there is one process alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _finish(y: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """What the kernels do after normalization, in place where types and shapes allow."""
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


class SyncBatchRenorm(BatchRenorm):
    """Batch Renormalization of the batches of all processes as one, like ``torch.nn.SyncBatchNorm``.

    The batches may differ in size, and be empty. On one process, and outside a process group, it is the
    plain layer. Parameters as ``BatchRenorm``; input (N, C, ...) of 2 to 5 dimensions.

    Attributes:
        process_group: the processes that share a batch; None for all.
    """

    _dimensions = (2, 3, 4, 5)

    def __init__(self, *args: Any, process_group: dist.ProcessGroup | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.process_group = process_group

    def _group(self) -> dist.ProcessGroup | None:
        return processes(self.process_group)
