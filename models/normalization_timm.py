"""Splits timm's batch normalization with a built-in activation, so that each part can be replaced."""

from torch import Tensor, nn


class NormThenActivation(nn.Module):
    """timm's ``BatchNormAct2d`` as a chain of modules: normalization, dropout of blocks, activation.

    Args:
        norm: any normalization of (B, C, H, W).
        drop: applied after it.
        act: applied last.
    """

    def __init__(self, norm: nn.Module, drop: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.drop, self.act = norm, drop, act

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C, H, W) → the same."""
        result: Tensor = self.act(self.drop(self.norm(x)))
        return result


def take_activations_out(network: nn.Module) -> nn.Module:
    """Replace every ``BatchNormAct2d`` inside a network by :class:`NormThenActivation`, in place.

    Parameters and statistics stay the same tensors. Without this, torch's own conversions
    (``convert_sync_batchnorm`` among them) drop the activation silently.
    """
    for name, module in list(network.named_modules()):
        kind = type(module)
        if kind.__name__ != "BatchNormAct2d" or not kind.__module__.startswith("timm."):
            continue
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, _apart(module))
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
