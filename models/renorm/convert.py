"""Turn the BatchNorm layers of any network into Batch Renormalization, and back."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from .layer import BatchRenorm, BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from .sync import SyncBatchRenorm

_RENORM: dict[type[nn.Module], type[BatchRenorm]] = {
    nn.BatchNorm1d: BatchRenorm1d,
    nn.BatchNorm2d: BatchRenorm2d,
    nn.BatchNorm3d: BatchRenorm3d,
    nn.SyncBatchNorm: SyncBatchRenorm,
}
_NORM: dict[type[nn.Module], type[_BatchNorm]] = {
    BatchRenorm1d: nn.BatchNorm1d,
    BatchRenorm2d: nn.BatchNorm2d,
    BatchRenorm3d: nn.BatchNorm3d,
    SyncBatchRenorm: nn.SyncBatchNorm,
}


def convert_to_batch_renorm(
    module: nn.Module,
    *,
    momentum: float | None = 0.01,
    scale: bool = True,
    frozen: bool = False,
    sync: bool = False,
    skip: Collection[str] = (),
    **settings: Any,
) -> nn.Module:
    """Replace every BatchNorm layer inside a module by Batch Renormalization.

    Parameters and running statistics are taken over as they are, the very same tensors: device, type,
    ``requires_grad`` and an optimizer's hold on them stay, as do the train flag and epsilon. A layer used
    in several places stays one layer. Hooks on replaced layers do not come along.

    Args:
        module: any module; its children are replaced in place. A compiled or scripted one is not searched.
        momentum: see ``BatchRenorm``; None keeps each layer's own. Torch's default of 0.1 remembers ten
            batches, the paper's 0.01 a hundred.
        scale: False stops gamma from training and keeps its present value.
        frozen: normalize by the running statistics in training, too, and leave them alone; gamma and beta
            train.
        sync: turn plain layers, too, into ``SyncBatchRenorm``; a ``SyncBatchNorm`` always is.
        skip: names of layers to leave alone, as ``named_modules`` gives them.
        settings: ``rmax``, ``dmax``, ``gradient_statistics``, ``gradient_momentum``, ``warmup_steps`` and
            ``warmup_shape`` of ``BatchRenorm``.

    Returns:
        The module, or its replacement where it is itself a BatchNorm layer.

    Raises:
        ValueError: on a layer that keeps no running statistics, has not seen its input yet (lazy), or is
            of a subclass of BatchNorm whose further behaviour would be lost; name it in ``skip``.
        TypeError: on an unknown setting.
    """

    def replacement(old: nn.Module, name: str) -> nn.Module | None:
        if not isinstance(old, _BatchNorm):
            return None
        kind = _RENORM.get(type(old))
        if kind is None:
            lazy = isinstance(old, _LazyNormBase)
            reason = "is lazy: run a batch first" if lazy else "would lose behaviour"
            raise ValueError(f"layer {name!r} ({type(old).__name__}) {reason}, or name it in skip")
        if old.running_mean is None:
            raise ValueError(f"layer {name!r} keeps no running statistics: name it in skip")
        place: dict[str, Any] = {"device": old.running_mean.device, "dtype": old.running_mean.dtype}
        weight = old.momentum if momentum is None else momentum
        kind = SyncBatchRenorm if sync else kind
        new = kind(old.num_features, old.eps, weight, False, scale=scale, **settings, **place)
        new.affine, new.frozen = old.affine, frozen
        if isinstance(new, SyncBatchRenorm) and isinstance(old, nn.SyncBatchNorm):
            new.process_group = old.process_group
        if old.weight is not None and not scale:
            old.weight.requires_grad_(False)
        return new

    return _replace(module, replacement, skip)


def revert_to_batch_norm(module: nn.Module, *, skip: Collection[str] = ()) -> nn.Module:
    """Replace every Batch Renormalization layer inside a module by torch's BatchNorm; evaluation stays
    the same.

    Args:
        module: any module; its children are replaced in place.
        skip: names of layers to leave alone, as ``named_modules`` gives them.

    Returns:
        The module, or its replacement where it is itself a Batch Renormalization layer.
    """

    def replacement(old: nn.Module, name: str) -> nn.Module | None:
        del name
        if not isinstance(old, BatchRenorm):
            return None
        place: dict[str, Any] = {"device": old.running_mean.device, "dtype": old.running_mean.dtype}
        momentum = None if old.cumulative else old._given["momentum"]
        new = _NORM[type(old)](old.num_features, old.eps, momentum, False, **place)
        new.affine = old.affine
        if isinstance(new, nn.SyncBatchNorm) and isinstance(old, SyncBatchRenorm):
            new.process_group = old.process_group
        return new

    return _replace(module, replacement, skip)


def _replace(
    module: nn.Module, replacement: Callable[[nn.Module, str], nn.Module | None], skip: Collection[str]
) -> nn.Module:
    """Walk every place a module is used at, so that one layer in two places is replaced once and in
    both.
    """
    replaced: dict[nn.Module, nn.Module] = {}
    known = {name for name, _ in module.named_modules(remove_duplicate=False)}
    if unknown := sorted(set(skip) - known):
        raise ValueError(f"skip names no layer of this module: {', '.join(unknown)}")

    def visit(old: nn.Module, name: str) -> nn.Module:
        if old in replaced:
            return replaced[old]
        replaced[old] = old
        if name in skip:
            return old
        new = replacement(old, name)
        if new is not None:
            for key in ("weight", "bias"):
                setattr(new, key, getattr(old, key))
            for key in ("running_mean", "running_var", "num_batches_tracked"):
                statistic = getattr(old, key)
                half = statistic.dtype in (torch.float16, torch.bfloat16)
                setattr(new, key, statistic.float() if half else statistic)
            replaced[old] = new.train(old.training)
            return new
        for key, child in old._modules.items():
            if child is not None:
                old._modules[key] = visit(child, f"{name}.{key}" if name else key)
        return old

    return visit(module, "")
