"""Faster training on a CPU: ReLUs and residual sums fused into layers, depthwise convolutions in float32."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.renorm import BatchRenorm, fuse_batch_renorm, native

Forward = Callable[[nn.Module, Tensor], Tensor]

_log = logging.getLogger(__name__)

# A trace repeats what the forward pass does now. Networks of these packages do the same at every step; a
# user's own class may draw or count in Python, and a trace would freeze that.
_TRACED = ("models", "timm", "torch", "torchvision")


class FusedForward:
    """Runs a backbone; in training on a CPU by the fused kernels, with fewer passes over memory.

    The fused form is only a function, which looks up the backbone's own layers by name at each call: it holds
    no parameters, and nothing of it is saved, moved, copied or registered. What a trace cannot represent
    (hooks, activation checkpointing, other operations in training than in evaluation) runs unfused.
    """

    def __init__(self) -> None:
        self._modules: list[nn.Module] = []
        self._forward: Forward | None = None

    def __call__(self, backbone: nn.Module, images: Tensor) -> Tensor:
        """The backbone's output for images (B, C, H, W), to rounding."""
        by_kernels = backbone.training and images.is_cpu and not torch.compiler.is_compiling()
        output: Tensor
        if by_kernels and native.enabled():
            modules = list(backbone.modules())
            if not any(_watched(module) for module in modules):
                if modules != self._modules:  # at the first step, or parts were replaced
                    self._modules, self._forward = modules, fused_forward(backbone)
                if self._forward is not None:
                    return self._forward(backbone, images)
        output = backbone(images)
        return output

    def __getstate__(self) -> dict[str, Any]:
        """Leave the trace out of copies and pickles; they trace again when they train."""
        return {"_modules": [], "_forward": None}


def fused_forward(backbone: nn.Module) -> Forward | None:
    """The backbone's forward pass, in which its layers do the sum and the ReLU that follow them.

    A function of the backbone and images; None where there is nothing to fuse or the trace fails.
    """
    around = [m for m in backbone.modules() if any(isinstance(p, BatchRenorm) for p in m.children())]
    if any(type(module).__module__.split(".")[0] not in _TRACED for module in around):
        return None
    try:
        fused = fuse_batch_renorm(backbone)
    except Exception as error:  # noqa: BLE001  (tracing runs the backbone's own code, which may raise anything)
        _log.debug("%s trains without fused layers: %s", type(backbone).__name__, error)
        return None
    calls = [node for node in fused.graph.nodes if node.op == "call_module"]
    taken_in = sum("relu" in node.kwargs or "residual" in node.kwargs for node in calls)
    _log.debug("%s trains with %d fused layers", type(backbone).__name__, taken_in)
    forward: Forward = type(fused).forward
    return forward if taken_in else None


def _watched(module: nn.Module) -> bool:
    """Whether a hook sees the module's inputs or outputs, or checkpointing runs it twice."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or getattr(module, "grad_checkpointing", False)
    )


def keep_float32(network: nn.Module) -> None:
    """Run the depthwise convolutions of a network in float32 where autocast is on for the CPU, in place.

    The backward pass of oneDNN's bfloat16 depthwise convolution takes several times as long as that in
    float32: EfficientNets and MobileNets would train at half their speed. Parameters, state dict and the
    types of inputs and outputs stay the same.
    """
    for module in network.modules():
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        if depthwise and "forward" not in vars(module):
            module.forward = partial(_in_float32, module.forward)


def _in_float32(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not torch.is_autocast_enabled("cpu"):
        return forward(x)
    with torch.autocast("cpu", enabled=False):
        return forward(x.float()).to(x.dtype)
