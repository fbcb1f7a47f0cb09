"""What a Batch Renormalization layer holds, loads, saves and shows; what it computes is in ``layer.py``."""

from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from .gradient import MovingAverages
from .statistics import Running

GradientKind = Literal["batch", "moving"]


class RenormState(nn.Module):
    """Parameters, statistics and settings of ``BatchRenorm``, which documents them."""

    _version = 2  # as BatchNorm's: 2 has num_batches_tracked

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    rmax: Tensor
    dmax: Tensor
    momentum: Tensor
    epsilon: Tensor
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
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        # Statistics stay in float32 at least, whatever the parameters' type: small steps would be lost
        # below.
        exact = {**place, "dtype": torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)}
        if affine:
            self.weight = nn.Parameter(torch.ones(num_features, **place), requires_grad=scale)
            self.bias = nn.Parameter(torch.zeros(num_features, **place))
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
        self.register_buffer("running_mean", torch.zeros(num_features, **exact))
        self.register_buffer("running_var", torch.ones(num_features, **exact))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long, device=device))
        if gradient_statistics == "moving":
            for name in ("gradient_mean", "gradient_projection"):
                self.register_buffer(name, torch.zeros(num_features, **exact), persistent=False)
            self.register_buffer("gradient_batches", torch.zeros((), **exact), persistent=False)
        for name in ("rmax", "dmax", "momentum", "gradient_momentum", "epsilon"):
            self.register_buffer(name, torch.full((), eps, **exact), persistent=False)
        self.register_buffer("clipped", torch.zeros(2, device=device), persistent=False)
        # As they were given: what the buffers hold is rounded to their type.
        self._given = {"epsilon": eps, "momentum": 0.0}
        self.set_limits(rmax, dmax, momentum)
        self._set("gradient_momentum", gradient_momentum)
        self._initial = dict(self._given)

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
            self._fill("rmax", rmax)
        if dmax is not None:
            if not dmax >= 0.0:
                raise ValueError(f"dmax is {dmax}: d is clipped to [-dmax, dmax], so give at least 0")
            self._fill("dmax", dmax)
        if momentum is not None:
            self._set("momentum", momentum)
            self.cumulative = False

    def _set(self, name: str, value: float) -> None:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} is {value}: give the weight of a batch, from 0 to 1")
        self._fill(name, value)

    def _fill(self, name: str, value: float) -> None:
        self._given[name] = value
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
        for name, value in self._initial.items():
            self._fill(name, value)
        self.clipped.zero_()
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def _moving_averages(self) -> MovingAverages | None:
        if self.gradient_statistics == "batch":
            return None
        return MovingAverages(
            self.gradient_mean, self.gradient_projection, self.gradient_batches, self.gradient_momentum
        )

    def averageable(self) -> list[Tensor]:
        """The statistics in the form in which averages of several make sense: mean and deviation, (C,)
        each.

        With moving gradient statistics these two follow.
        """
        running = Running(self.running_mean, self.running_var, self.epsilon)
        vectors = [self.running_mean, running.deviation()]
        moving = self._moving_averages()
        return vectors if moving is None else [*vectors, moving.mean, moving.projection]

    def set_averageable(self, vectors: list[Tensor]) -> None:
        """Set the statistics from the form that ``averageable`` gives."""
        self.running_mean.copy_(vectors[0])
        self.running_var.copy_(vectors[1].square() - self.eps)
        moving = self._moving_averages()
        if moving is not None:
            moving.mean.copy_(vectors[2])
            moving.projection.copy_(vectors[3])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the layer; the statistics follow to the device, but not below float32.

        The settings are as exact in the new type as if the layer had been made in it.
        """
        exact = {name: b for name, b in self._buffers.items() if b is not None and b.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in exact.items():
            after = getattr(self, name)
            if after.dtype in (torch.float16, torch.bfloat16):
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
