"""Fold Batch Renormalization into the layer before it: inference without normalization."""

import copy
import threading
from collections.abc import Callable
from typing import Any, cast

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from .layer import BatchRenorm

_Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


# torch.fx replaces nn.Module.__call__ for the whole process while it traces.
_tracing = threading.RLock()


class RenormTracer(fx.Tracer):
    """Takes Batch Renormalization as one operation, as it does torch's own layers.

    Other threads may run networks meanwhile, as a server does while it loads another model.
    """

    def trace(
        self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None
    ) -> fx.Graph:
        """One trace at a time: of two that overlap, the one that ends last would leave its patch behind."""
        with _tracing:
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record a call of this thread; let others' through."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a call of the module is one operation."""
        return isinstance(m, BatchRenorm) or super().is_leaf_module(m, module_qualified_name)


def fold_batch_renorm(module: nn.Module) -> fx.GraphModule:
    """A copy for inference in which convolutions and linear layers have taken up the renormalization
    after them.

    A layer is folded where its input is the output of a convolution or linear layer that nothing else
    uses, and both are called once; any other stays.

    Args:
        module: in evaluation mode, traceable by ``torch.fx.symbolic_trace``; it is left as it is.

    Returns:
        A graph module with the module's outputs, to rounding.

    Raises:
        ValueError: when the module is in training mode, where there is nothing to fold.
    """
    if module.training:
        raise ValueError("folding is for inference: call eval() first")
    root = copy.deepcopy(module)
    traced = fx.GraphModule(root, RenormTracer().trace(root))
    modules = dict(traced.named_modules(remove_duplicate=False))
    calls: dict[nn.Module, int] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            calls[modules[node.target]] = calls.get(modules[node.target], 0) + 1
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], BatchRenorm):
            continue
        norm = modules[node.target]
        before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        layer = modules[before.target]
        if calls[layer] != 1 or calls[norm] != 1:
            continue
        if isinstance(layer, _Convolution):
            transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
            folded = cast(nn.Module, fuse_conv_bn_eval(layer, norm, transposed))
        elif isinstance(layer, nn.Linear) and norm.affine and layer.out_features == norm.num_features:
            folded = cast(nn.Module, fuse_linear_bn_eval(layer, norm))
        else:
            continue
        traced.set_submodule(str(before.target), folded)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced
