"""Turn the BatchNorm layers of any network into Batch Renormalization, and back."""

from collections.abc import Callable, Collection
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from .layer import BatchRenorm, BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, SyncBatchRenorm
from .statistics import HALF

_RENORM: dict[type[nn.Module], type[BatchRenorm]] = {
    nn.BatchNorm1d: BatchRenorm1d,
    nn.BatchNorm2d: BatchRenorm2d,
    nn.BatchNorm3d: BatchRenorm3d,
    nn.SyncBatchNorm: SyncBatchRenorm,
}
_NORM: dict[type[nn.Module], Any] = {renorm: norm for norm, renorm in _RENORM.items()}


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

    Parameters and running statistics stay the very same tensors: device, type, ``requires_grad`` and an
    optimizer's references to them stay, as do the training flag and epsilon. A layer used in several places
    stays one layer. Hooks on replaced layers are lost.

    Args:
        module: any module; its children are replaced in place. A compiled or scripted one is not searched.
        momentum: see ``BatchRenorm``; None keeps each layer's own. Torch's default of 0.1 remembers ten
            batches, the paper's 0.01 a hundred.
        scale: False stops gamma from training and keeps its present value.
        frozen: normalize by the running statistics in training, too, and leave them unchanged; gamma and
            beta train.
        sync: turn plain layers, too, into ``SyncBatchRenorm``; a ``SyncBatchNorm`` always is.
        skip: names of layers to leave alone, as ``named_modules`` gives them.
        settings: ``rmax``, ``dmax``, ``gradient_statistics``, ``gradient_momentum``, ``warmup_steps`` and
            ``warmup_shape`` of ``BatchRenorm``.

    Returns:
        The module, or its replacement where it is itself a BatchNorm layer.

    Raises:
        ValueError: on a layer that keeps no running statistics, has not seen its input yet (lazy), or is
            of a subclass of BatchNorm, whose behaviour would be lost; name it in ``skip``.
        TypeError: on an unknown setting.
    """

    def renorm(old: nn.Module, name: str) -> nn.Module | None:
        if not isinstance(old, _BatchNorm):
            return None
        kind = _RENORM.get(type(old))
        if kind is None:
            lazy = isinstance(old, _LazyNormBase)
            reason = "is lazy: run a batch first" if lazy else "would lose behaviour"
            raise ValueError(f"layer {name!r} ({type(old).__name__}) {reason}, or name it in skip")
        if old.running_mean is None:
            raise ValueError(f"layer {name!r} keeps no running statistics: name it in skip")
        weight = old.momentum if momentum is None else momentum
        place: dict[str, Any] = {"device": old.running_mean.device, "dtype": old.running_mean.dtype}
        kind = SyncBatchRenorm if sync else kind
        new = kind(old.num_features, old.eps, weight, False, scale=scale, **settings, **place)
        new.frozen = frozen
        if old.weight is not None and not scale:
            old.weight.requires_grad_(False)
        return new

    return _replace(module, renorm, skip)


def revert_to_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every Batch Renormalization layer inside a module by BatchNorm; evaluation stays the same.

    Returns:
        The module, changed in place, or its replacement where it is itself a Batch Renormalization layer.
    """

    def norm(old: nn.Module, _: str) -> nn.Module | None:
        if not isinstance(old, BatchRenorm):
            return None
        momentum = None if old.cumulative else old._given["momentum"]
        place: dict[str, Any] = {"device": old.running_mean.device, "dtype": old.running_mean.dtype}
        new: nn.Module = _NORM[type(old)](old.num_features, old.eps, momentum, False, **place)
        return new

    return _replace(module, norm)


def _replace(
    module: nn.Module, make: Callable[[nn.Module, str], nn.Module | None], skip: Collection[str] = ()
) -> nn.Module:
    """Put what ``make`` gives for a layer and its name into each place of the layer; None keeps the layer."""
    known = {name for name, _ in module.named_modules(remove_duplicate=False)}
    if unknown := sorted(set(skip) - known):
        raise ValueError(f"skip names no layer of this module: {', '.join(unknown)}")
    replaced: dict[nn.Module, nn.Module] = {}

    def visit(old: nn.Module, name: str) -> nn.Module:
        if old in replaced:
            return replaced[old]
        replaced[old] = old
        if name in skip:
            return old
        if (new := make(old, name)) is not None:
            _take_over(new, old)
            replaced[old] = new
            return new
        for key, child in old._modules.items():
            if child is not None:
                old._modules[key] = visit(child, f"{name}.{key}" if name else key)
        return old

    return visit(module, "")


def _take_over(new: Any, old: Any) -> None:
    """Give a layer the tensors and the state of another; statistics in half precision become float32."""
    new.affine, new.weight, new.bias = old.affine, old.weight, old.bias
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        statistic = getattr(old, key)
        setattr(new, key, statistic.float() if statistic.dtype in HALF else statistic)
    if hasattr(new, "process_group") and hasattr(old, "process_group"):
        new.process_group = old.process_group
    new.train(old.training)
