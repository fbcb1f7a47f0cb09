"""Normalization of a batch in groups, at the cost of normalizing it at once.

The groups become channels: (B, C, H, W), with the groups interleaved, is viewed as (B / G, G · C, H, W), and
one ordinary layer of G · C channels normalizes every group by its own statistics.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import InputError
from models.renorm import BatchRenorm
from models.renorm.autograd import GradientAverages

Normalizer = nn.BatchNorm2d | BatchRenorm


class GroupedNormalization(nn.Module):
    """Trains with the statistics of each group, and tests like the ungrouped layer.

    As with the paper's workers, every group starts a step from the same running statistics. A step is one or
    more passes, each between :meth:`restart` and :meth:`collect`; then :meth:`settle` replaces the running
    statistics by their average over the groups (of standard deviations, for Batch Renormalization).

    Args:
        plain: the layer to group, of C channels: parameters and running statistics stay in it.
        groups: G.
        consecutive: each pass starts from the statistics that the previous one left; the last one's remain.
        shared_momentum: the gradient subtracts statistics of all groups; see ``experiment_config.Groups``.
    """

    def __init__(
        self,
        plain: Normalizer,
        groups: int,
        consecutive: bool = False,
        shared_momentum: float | None = None,
    ) -> None:
        super().__init__()
        self.plain = plain
        self.groups = groups
        self.consecutive = consecutive
        self.shared_momentum = shared_momentum
        self._shared = torch.zeros(4, plain.num_features), torch.zeros(())
        self.by_batch = False  # test with the statistics of each group instead of the running statistics
        self._collected: list[list[Tensor]] = []
        wide = deepcopy(plain).requires_grad_(False)
        wide.num_features = plain.num_features * groups
        for name, tensor in [*wide.named_parameters(), *wide.named_buffers()]:
            if tensor.dim() >= 1 and name != "clipped":
                tensor.data = tensor.data.repeat(*[1] * (tensor.dim() - 1), groups)
        # Each forward pass gives it the repeated parameters of the plain layer.
        del wide.weight, wide.bias
        wide.weight = wide.bias = None  # type: ignore[assignment]
        if isinstance(wide, BatchRenorm) and shared_momentum is not None:
            wide.final_gradient_momentum = shared_momentum
            wide.set_limits(gradient_momentum=shared_momentum)
        # It normalizes in training, and is not a submodule: it has no parameters of its own.
        object.__setattr__(self, "wide", wide.train())
        self.wide: Normalizer

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, H, W), whose position i is of group i modulo G."""
        if not self.training and not self.by_batch:
            output: Tensor = self.plain(x)
            return output
        weight, bias = self.plain.weight.repeat(self.groups), self.plain.bias.repeat(self.groups)
        batch, channels, *inner = x.shape
        folded = x.reshape(batch // self.groups, self.groups * channels, *inner)
        if self.by_batch:
            y = functional.batch_norm(folded, None, None, weight, bias, True, 0.0, self.plain.eps)
        elif self.shared_momentum is not None:
            with torch.no_grad():
                normalized = self.wide(folded)
            y = _SharedGradient.apply(folded, normalized, weight, bias, self)
        else:
            self.wide.weight, self.wide.bias = weight, bias  # type: ignore[assignment]
            y = self.wide(folded)
            self.wide.weight = self.wide.bias = None  # type: ignore[assignment]
        return y.reshape(x.shape)

    def shared_fit(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        """Fit the gradient by a constant and z over all groups of this and earlier steps.

        As in the layer itself, the first steps all weigh the same. From each group's means of dy, dy · z, z
        and z², (4, G · C), to the constant and the slope, (G · C,) each.
        """
        if not self.shared_momentum:
            return torch.zeros_like(moments[0]), torch.zeros_like(moments[0])
        now = moments.view(4, self.groups, -1).mean(1)
        kept, steps = self._shared = self._shared[0].to(now), self._shared[1].to(now)
        averages = GradientAverages(kept, steps, self.wide.gradient_momentum)  # type: ignore[arg-type]
        # A channel without variance has no slope.
        constant, slope = (v.nan_to_num(0.0, 0.0, 0.0).repeat(self.groups) for v in averages.fit(now))
        return constant, slope

    @torch.no_grad()
    def collect(self) -> None:
        """Record the groups' statistics after a backward pass; a step may consist of several passes."""
        if self.consecutive:
            self._collected.clear()
        self._collected.append([v.view(self.groups, -1).mean(0) for v in self._statistics(self.wide)])

    @torch.no_grad()
    def restart(self) -> None:
        """Begin a pass from the running statistics as they were before the step, unless it is consecutive."""
        if self.consecutive:
            return
        self._set(self.wide, [v.repeat(self.groups) for v in self._statistics(self.plain)])
        if isinstance(self.wide, BatchRenorm) and self._moving:
            self.wide.gradient_batches.copy_(self.plain.gradient_batches)  # type: ignore[arg-type]

    @torch.no_grad()
    def settle(self) -> None:
        """End a step: average the running statistics over the groups of all passes."""
        passes = [torch.stack(values).mean(0) for values in zip(*self._collected, strict=True)]
        self._collected.clear()
        self._set(self.plain, passes)
        if isinstance(self.plain, BatchRenorm) and self._moving:
            self.plain.gradient_batches.add_(1)

    @property
    def _moving(self) -> bool:
        return isinstance(self.plain, BatchRenorm) and self.plain.gradient_statistics != "batch"

    @staticmethod
    def _statistics(layer: Normalizer) -> list[Tensor]:
        if isinstance(layer, BatchRenorm):
            return layer.averaged_stats()
        assert layer.running_mean is not None  # noqa: S101 - for the type checker
        assert layer.running_var is not None  # noqa: S101
        return [layer.running_mean, layer.running_var]

    @staticmethod
    def _set(layer: Normalizer, values: list[Tensor]) -> None:
        if isinstance(layer, BatchRenorm):
            layer.set_averaged_stats(values)
            return
        for old, new in zip(GroupedNormalization._statistics(layer), values, strict=True):
            old.copy_(new)


class _SharedGradient(torch.autograd.Function):
    """y = weight · z + bias, whose gradient subtracts a fit of dy over all groups together.

    dx = weight · dz/dx · (dy - constant - slope · z), where z is Batch Renormalization's output before weight
    and bias; dz/dx is the ratio of their standard deviations.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, normalized: Tensor, weight: Tensor, bias: Tensor, layer: GroupedNormalization
    ) -> Tensor:
        variances = _full(normalized).var((0, 2, 3)) / _full(x).var((0, 2, 3))
        ctx.save_for_backward(normalized, weight, variances.sqrt().nan_to_num(0.0, 0.0, 0.0))
        ctx.layer = layer
        return torch.addcmul(_along(bias), normalized, _along(weight)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, derivative = ctx.saved_tensors
        dy, z = _full(gradients[0]), _full(z)
        sums = torch.stack([values.sum((0, 2, 3)) for values in (dy, dy * z, z, z * z)])
        constant, slope = ctx.layer.shared_fit(sums * (dy.shape[1] / dy.numel()))
        dx = (dy - _along(constant) - z * _along(slope)) * _along(weight * derivative)
        return dx.to(gradients[0].dtype), None, sums[1], sums[0], None


def _full(values: Tensor) -> Tensor:
    """At least float32, in which statistics are taken under autocast."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _along(values: Tensor) -> Tensor:
    """(C,) as (1, C, 1, 1)."""
    return values.view(1, -1, 1, 1)


def group_normalization(
    network: nn.Module, groups: int, consecutive: bool = False, shared_momentum: float | None = None
) -> nn.Module:
    """Let every batch-normalizing layer of a network see groups, in place; other layers stay as they are.

    For the arguments see :class:`GroupedNormalization`.

    Raises:
        InputError: gradient statistics are to be shared by a layer other than Batch Renormalization.
    """
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d | BatchRenorm) and type(child).__name__[:6] != "Frozen":
            if shared_momentum is not None and not isinstance(child, BatchRenorm):
                raise InputError("only normalization: renorm shares gradient statistics between groups")
            layer = GroupedNormalization(child, groups, consecutive, shared_momentum)
            setattr(network, name, layer)
        else:
            group_normalization(child, groups, consecutive, shared_momentum)
    return network


def ungroup_normalization(network: nn.Module) -> nn.Module:
    """Put the plain layers back, in place."""
    for name, child in network.named_children():
        setattr(network, name, child.plain if isinstance(child, GroupedNormalization) else child)
        ungroup_normalization(child)
    return network


def grouped_layers(network: nn.Module) -> Iterator[GroupedNormalization]:
    """Every grouped layer of a network."""
    return (module for module in network.modules() if isinstance(module, GroupedNormalization))


def wide_layers(network: nn.Module) -> nn.ModuleList:
    """The layers that train, for a schedule to drive."""
    return nn.ModuleList(layer.wide for layer in grouped_layers(network))
