"""One word picks the normalization of a whole network."""

from collections.abc import Callable, Mapping, Sequence
from math import gcd
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from models.errors import InputError
from models.renorm import BatchRenorm, convert_to_batch_renorm

Normalization = Literal[
    "renorm",
    "sync_renorm",
    "batch",
    "sync_batch",
    "frozen_batch",
    "group",
    "layer",
    "none",
]
_REMOVED = ("instance", "virtual_batch", "weight")
KINDS: tuple[str, ...] = get_args(Normalization)

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class ChannelAffine(nn.Module):
    """y = weight · x + bias for each channel, (B, C, ...): batch normalization without its statistics."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C, ...) → the same."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        return x * self.weight.view(shape).to(x.dtype) + self.bias.view(shape).to(x.dtype)


class FrozenBatchNorm(_BatchNorm):
    """Batch normalization that always uses its running statistics; its weights do not train either.

    Its training flag follows ``train()``, since Lightning warns of modules that stay in evaluation mode.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C, ...) → the same."""
        mean, var = self.running_mean, self.running_var
        return functional.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)


class NormThenActivation(nn.Module):
    """timm's ``BatchNormAct2d`` as a chain of modules: normalization, dropout of blocks, activation."""

    def __init__(self, norm: nn.Module, drop: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.drop, self.act = norm, drop, act

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C, H, W) → the same."""
        result: Tensor = self.act(self.drop(self.norm(x)))
        return result


def set_normalization(network: nn.Module, kind: str, args: Mapping[str, Any] | None = None) -> nn.Module:
    """Replace every batch normalization of a network by another kind, which keeps weights and statistics.

    Args:
        network: built with torch's BatchNorm layers; changed in place.
        kind: one of `KINDS`.
        args: of the kind: renorm's (`rmax`, `dmax`, `momentum`, ...); `groups` of "group" (default 32, or the
            largest number that divides both it and the channels).

    Returns:
        The network.

    Raises:
        InputError: the kind is unknown or was removed, or the network has no batch normalization.
    """
    if kind not in KINDS:
        problem = "is no longer supported: train with" if kind in _REMOVED else "is unknown;"
        raise InputError(f"normalization {kind!r} {problem} one of {', '.join(KINDS)}")
    arguments = dict(args or {})
    if not any(isinstance(module, BatchNorm) for module in network.modules()):
        if any(isinstance(module, nn.LayerNorm) for module in network.modules()) and kind == "layer":
            return network
        raise InputError(
            f"{type(network).__name__} has no batch normalization that could become {kind!r}; "
            "set normalization: layer for networks built on layer normalization, or take another backbone"
        )
    try:
        if kind != "batch":
            take_activations_out(network)
        return _convert(network, kind, arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"normalization {kind} with {arguments}: {error}") from error


def freeze_layers(backbone: nn.Module, parts: Sequence[str]) -> None:
    """Freeze named modules of a backbone: parameters, and the statistics of Batch Renormalization.

    Raises:
        InputError: a name is not one of its modules.
    """
    for name in parts:
        try:
            part = backbone.get_submodule(name)
        except AttributeError as error:
            known = ", ".join(child for child, _ in backbone.named_children())
            raise InputError(f"frozen_layers: {name!r} is no part of the backbone ({known})") from error
        part.requires_grad_(False)
        for module in part.modules():
            if isinstance(module, BatchRenorm):
                module.frozen = True


def _convert(network: nn.Module, kind: str, args: dict[str, Any]) -> nn.Module:
    if kind in ("renorm", "sync_renorm"):
        return convert_to_batch_renorm(network, sync=kind == "sync_renorm", **args)
    if kind == "batch":
        for module in network.modules():
            if isinstance(module, BatchNorm):
                for key, value in args.items():
                    if key not in ("eps", "momentum"):
                        raise TypeError(f"unexpected {key!r}")
                    setattr(module, key, value)
        return network
    if kind == "sync_batch":
        synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network, **args)  # type: ignore[no-untyped-call]
        return synchronized
    makers: dict[str, Callable[[Any], nn.Module]] = {
        "frozen_batch": _make_frozen,
        "group": lambda norm: _make_group(norm, **args),
        "layer": lambda norm: _make_group(norm, groups=1),
        "none": lambda norm: _copy_affine(norm, ChannelAffine(norm.num_features)),
    }
    if args and kind != "group":
        raise TypeError(f"it takes no arguments, not {sorted(args)}")
    return _replace(network, makers[kind])


def _replace(module: nn.Module, make: Callable[[Any], nn.Module]) -> nn.Module:
    if isinstance(module, BatchNorm):
        if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            raise ValueError(f"{type(module).__name__} does more than normalize; keep normalization: batch")
        return make(module).train(module.training)
    for name, child in module.named_children():
        setattr(module, name, _replace(child, make))
    return module


def _copy_affine(old: BatchNorm, new: nn.Module) -> nn.Module:
    if old.affine:
        with torch.no_grad():
            new.weight.copy_(old.weight)  # type: ignore[operator]
            new.bias.copy_(old.bias)  # type: ignore[operator]
    return new


def _make_frozen(old: BatchNorm) -> nn.Module:
    new = FrozenBatchNorm(old.num_features, old.eps, old.momentum, old.affine)
    new.load_state_dict(old.state_dict())
    return new.requires_grad_(False)


def _make_group(old: BatchNorm, groups: int = 32) -> nn.Module:
    number = gcd(groups, old.num_features)
    return _copy_affine(old, nn.GroupNorm(number, old.num_features, old.eps))


def take_activations_out(network: nn.Module) -> nn.Module:
    """Replace every ``BatchNormAct2d`` inside a network by :class:`NormThenActivation`, in place.

    Parameters and statistics stay the same tensors. Without this, torch's own conversions
    (``convert_sync_batchnorm`` among them) drop the activation silently.
    """
    for name, module in list(network.named_modules()):
        kind = type(module)
        if kind.__name__ == "BatchNormAct2d" and kind.__module__.startswith("timm."):
            network.set_submodule(name, _apart(module))
    return network


def _apart(module: nn.Module) -> NormThenActivation:
    old: nn.BatchNorm2d = module  # type: ignore[assignment]
    norm = nn.BatchNorm2d(
        old.num_features, old.eps, old.momentum, affine=False, track_running_stats=old.track_running_stats
    )
    norm.affine = old.affine
    norm.weight, norm.bias = old.weight, old.bias
    norm.running_mean, norm.running_var = old.running_mean, old.running_var
    norm.num_batches_tracked = old.num_batches_tracked
    drop, act = getattr(old, "drop", nn.Identity()), getattr(old, "act", nn.Identity())
    if not isinstance(drop, nn.Module) or not isinstance(act, nn.Module):
        raise ValueError(f"{type(module).__name__} keeps its activation in an unknown way")
    return NormThenActivation(norm.train(module.training), drop, act)
