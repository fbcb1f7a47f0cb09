"""Batch Renormalization as modules: drop-in replacements of torch's BatchNorm layers."""

from collections.abc import Callable
from math import isfinite
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from .autograd import KernelCall, KernelRenorm, TorchRenorm, dense, kernels_take
from .gradient import GradientRule, MovingMoments
from .recompute import CallMemory, may_be_recomputed, recomputing
from .statistics import HALF, batch_statistics, correct

GradientKind = Literal["batch", "moving"]
WarmupShape = Literal["linear", "step"]


class BatchRenorm(nn.Module):
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
        gradient_statistics: "batch" for the paper's gradient; "moving" takes the two statistics that it
            subtracts from the recent batches together.
        gradient_momentum: weight of a batch among those.
        warmup_steps: training batches over which the limits go from 1 and 0 to rmax and dmax, counted by
            ``num_batches_tracked``, so that a checkpoint resumes it; None for none. Not with a
            ``RenormSchedule``.
        warmup_shape: "linear", or "step" for batch normalization until the warm-up ends.
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
        if gradient_statistics not in ("batch", "moving"):
            raise ValueError(f'gradient_statistics is "batch" or "moving", not {gradient_statistics!r}')
        if warmup_shape not in ("linear", "step"):
            raise ValueError(f'warmup_shape is "linear" or "step", not {warmup_shape!r}')
        if warmup_steps is not None and warmup_steps < 1:
            raise ValueError(f"warmup_steps is {warmup_steps}: give at least 1, or None for no warm-up")
        self.num_features, self.eps, self.affine, self.scale = num_features, eps, affine, scale
        self.gradient_statistics: GradientKind = gradient_statistics
        self.warmup_steps, self.warmup_shape = warmup_steps, warmup_shape
        self.track_running_stats = True
        self.cumulative = momentum is None
        self.frozen = self.monitor = False
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        # Statistics stay in float32 at least, whatever the parameters' type: small steps would be lost below.
        exact = {**place, "dtype": torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)}
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        if affine:
            self.weight = nn.Parameter(torch.ones(num_features, **place), requires_grad=scale)
            self.bias = nn.Parameter(torch.zeros(num_features, **place))
        self.register_buffer("running_mean", torch.zeros(num_features, **exact))
        self.register_buffer("running_var", torch.ones(num_features, **exact))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long, device=device))
        if gradient_statistics == "moving":
            self.register_buffer("gradient_moments", torch.zeros(4, num_features, **exact), persistent=False)
            self.register_buffer("gradient_batches", torch.zeros((), **exact), persistent=False)
        for name in ("rmax", "dmax", "momentum", "gradient_momentum"):
            self.register_buffer(name, torch.zeros((), **exact), persistent=False)
        self.register_buffer("clipped", torch.zeros(2, device=device), persistent=False)
        # As they were given: what the buffers hold is rounded to their type.
        self._given = {"momentum": 0.0}
        self.set_limits(rmax, dmax, momentum)
        self._set_weight("gradient_momentum", gradient_momentum)
        self._initial = dict(self._given)
        self._memory = CallMemory()

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
        for name, value, least in (("rmax", rmax, 1.0), ("dmax", dmax, 0.0)):
            if value is None:
                continue
            if not value >= least:
                raise ValueError(f"{name} is {value}: give at least {least:g}")
            if self.warmup_steps is not None and not isfinite(value):
                raise ValueError(f"{name} is {value}: a warm-up needs an end that is a number")
            self._fill(name, value)
        if momentum is not None:
            self._set_weight("momentum", momentum)
            self.cumulative = False

    def _set_weight(self, name: str, value: float) -> None:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} is {value}: give the weight of a batch, from 0 to 1")
        self._fill(name, value)

    def _fill(self, name: str, value: float) -> None:
        self._given[name] = value
        getattr(self, name).fill_(value)

    def limits(self) -> tuple[Tensor, Tensor]:
        """The largest r and d of the next batch, tensors without dimensions; a warm-up is in them."""
        if self.warmup_steps is None:
            return self.rmax, self.dmax
        done = (self.num_batches_tracked.to(self.rmax.dtype) / self.warmup_steps).clamp(max=1)
        if self.warmup_shape == "step":
            done = done.floor()
        return 1 + (self.rmax - 1) * done, self.dmax * done

    def forward(
        self,
        input: Tensor,  # noqa: A002 - BatchNorm's name for it
        mask: Tensor | None = None,
        *,
        residual: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        """Normalize a batch, and on request do what usually follows, too; the kernels do all in one.

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
        again = not compiling and len(self._memory) > 0 and recomputing()
        # What is recomputed takes the same way in both passes.
        if not (remember or again) and self._kernels_take(input, mask, residual):
            return self._by_kernels(input, residual, relu)
        with torch.no_grad():
            mean, std, count = self._batch_statistics(input, mask)
            r, d = self._memory.recall(mean, std) if again else self._correction(mean, std)
            if remember and not again:
                self._memory.remember(mean, r, d)
        rule = self._gradient_rule(count)
        output: Tensor = TorchRenorm.apply(input, mask, self.weight, self.bias, mean, std, r, d, rule)
        return _followed(output, residual, relu)

    def _evaluate(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        # Parameters may be in half precision.
        weight, bias = (p if p is None else p.to(mean.dtype) for p in (self.weight, self.bias))
        return functional.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)

    def _by_kernels(self, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        rmax, dmax = self.limits()
        clipped = self.running_mean.new_empty(2, self.num_features) if self.monitor else None
        call = KernelCall(
            self.running_mean,
            self.running_var,
            rmax,
            dmax,
            self.momentum,
            self.eps,
            self.num_batches_tracked,
            self.cumulative,
            relu,
            clipped,
            self._moving_moments(),
        )
        output: Tensor = KernelRenorm.apply(dense(x), self.weight, self.bias, residual, call)
        if clipped is not None:
            self.clipped.copy_(clipped.mean(1))
        return output

    def _correction(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        rmax, dmax = self.limits()
        batches = self.num_batches_tracked.add_(1)
        momentum = batches.to(mean.dtype).reciprocal() if self.cumulative else self.momentum
        clipped = self.clipped if self.monitor else None
        return correct(
            mean, std, self.running_mean, self.running_var, self.eps, rmax, dmax, momentum, clipped
        )

    def _check_input(self, input: Tensor) -> None:  # noqa: A002
        if input.dim() not in self._dimensions:
            expected = " or ".join(f"{n}D" for n in self._dimensions)
            raise ValueError(f"{type(self).__name__} expects {expected} input, got {input.dim()}D")
        if input.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} has {self.num_features} channels, the input {input.shape[1]}"
            )

    # What the synchronized layer does differently.

    def _check_values(self, x: Tensor) -> None:
        if x.numel() // max(x.shape[1], 1) < 2:
            raise ValueError(
                f"one value per channel has no variance (input {tuple(x.shape)}): train on larger batches, "
                "or call eval() or freeze the layer"
            )

    def _kernels_take(self, x: Tensor, mask: Tensor | None, residual: Tensor | None) -> bool:
        return kernels_take(x, mask, residual, self.running_mean, self.weight)

    def _batch_statistics(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        return batch_statistics(x, self.eps, mask)

    def _gradient_rule(self, count: Tensor | None) -> GradientRule | None:
        moving = self._moving_moments()
        return None if moving is None and count is None else GradientRule(moving, count)

    # What it holds, besides BatchNorm's.

    def _moving_moments(self) -> MovingMoments | None:
        if self.gradient_statistics == "batch":
            return None
        return MovingMoments(self.gradient_moments, self.gradient_batches, self.gradient_momentum)

    def averageable(self) -> list[Tensor]:
        """The statistics in the form in which averages of several make sense: mean and deviation, (C,)
        each.

        With moving gradient statistics four more follow.
        """
        vectors = [self.running_mean, (self.running_var + self.eps).sqrt_()]
        return vectors if self.gradient_statistics == "batch" else [*vectors, *self.gradient_moments]

    def set_averageable(self, vectors: list[Tensor]) -> None:
        """Set the statistics from the form that ``averageable`` gives."""
        self.running_mean.copy_(vectors[0])
        self.running_var.copy_(vectors[1].square() - self.eps)
        if self.gradient_statistics == "moving":
            self.gradient_moments.copy_(torch.stack(vectors[2:]))

    def reset_running_stats(self) -> None:
        """Forget every batch seen: mean 0, variance 1, as BatchNorm starts."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()
        if self.gradient_statistics == "moving":
            self.gradient_moments.zero_()
            self.gradient_batches.zero_()

    def reset_parameters(self) -> None:
        """All as after construction, also after ``to_empty`` of a layer built on the meta device."""
        self.reset_running_stats()
        for name, value in self._initial.items():
            self._fill(name, value)
        self.clipped.zero_()
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the layer; the statistics follow to the device, but not below float32.

        The settings are as exact in the new type as if the layer had been made in it.
        """
        exact = {name: b for name, b in self.named_buffers() if b.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in exact.items():
            after = getattr(self, name)
            if after.dtype in HALF:
                setattr(self, name, before.to(after.device))
        if self.rmax.dtype != exact["rmax"].dtype:
            for name, value in self._given.items():
                self._fill(name, value)
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
        """Copies and pickles carry no calls that wait for recomputation."""
        return {**self.__dict__, "_memory": CallMemory()}

    def extra_repr(self) -> str:
        """The settings, for printing."""
        text = f"{self.num_features}, eps={self.eps}, affine={self.affine}"
        if not self.running_mean.is_meta:
            momentum = None if self.cumulative else round(float(self.momentum), 6)
            text += f", momentum={momentum}, rmax={float(self.rmax):g}, dmax={float(self.dmax):g}"
        unusual = {
            "scale": True,
            "gradient_statistics": "batch",
            "warmup_steps": None,
            "warmup_shape": "linear",
        }
        given = {name: getattr(self, name) for name, usual in unusual.items() if getattr(self, name) != usual}
        return text + "".join(f", {name}={value!r}" for name, value in given.items())


def _followed(y: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """What the kernels do after normalization, in place as far as that changes nothing."""
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
