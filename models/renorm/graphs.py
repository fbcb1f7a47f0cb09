"""Networks rewritten by torch.fx: layers folded into what precedes them, or fused with what follows them."""

import copy
import operator
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from .layer import BatchRenorm

_RELUS: tuple[Any, ...] = (functional.relu, torch.relu, torch.relu_, "relu", "relu_")
_SUMS: tuple[Any, ...] = (operator.add, torch.add, "add")
_SUMS_IN_PLACE: tuple[Any, ...] = (operator.iadd, "add_")

# torch.fx replaces nn.Module.__call__ for the whole process while it traces.
_tracing = threading.RLock()


class RenormTracer(fx.Tracer):
    """Looks into modules that contain Batch Renormalization; any other module is one operation.

    Other threads may run networks meanwhile, as a server does while it loads another model.
    """

    def trace(
        self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None
    ) -> fx.Graph:
        """Trace, one at a time: of two that overlap, the one that ends last would leave its patch behind."""
        with _tracing:
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record a call of this thread; run those of other threads."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, _: str) -> bool:
        """Whether a call of the module is one operation."""
        return isinstance(m, BatchRenorm) or not any(isinstance(part, BatchRenorm) for part in m.modules())


def fold_batch_renorm(module: nn.Module) -> fx.GraphModule:
    """A copy for inference whose convolutions and linear layers include the renormalization after them.

    A layer is folded if its input is the output of a convolution or linear layer that nothing else uses,
    and both are called once; any other stays.

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
    nodes = [node for node in traced.graph.nodes if node.op == "call_module"]
    calls = Counter(modules[node.target] for node in nodes)
    for node in nodes:
        norm = modules[node.target]
        if not isinstance(norm, BatchRenorm) or len(node.args) != 1 or node.kwargs:
            continue
        before = node.args[0]
        if before.op != "call_module" or len(before.users) != 1:
            continue
        layer = modules[before.target]
        if calls[layer] == calls[norm] == 1 and (folded := _folded(layer, norm)) is not None:
            traced.set_submodule(before.target, folded)
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _folded(layer: nn.Module, norm: Any) -> nn.Module | None:
    if isinstance(layer, _ConvNd):
        return fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, _ConvTransposeNd))
    if isinstance(layer, nn.Linear) and norm.affine and layer.out_features == norm.num_features:
        return fuse_linear_bn_eval(layer, norm)
    return None


def fuse_batch_renorm(module: nn.Module) -> fx.GraphModule:
    """The same network, whose Batch Renormalization layers do the residual sum and the ReLU after them.

    A layer takes in what follows it if nothing else uses the value between. Outputs and gradients are the
    same to rounding. The kernels of ``native`` then pass over memory once, which is faster. Parameters and
    layers are the module's own, under the same names: state dictionaries and optimizers stay valid. Do it
    last: ``revert_to_batch_norm`` and ``fold_batch_renorm`` take the module, not the fused one.

    Args:
        module: traceable by ``torch.fx.symbolic_trace``, with the same operations in training and evaluation.

    Returns:
        A graph module, in the module's mode.

    Raises:
        ValueError: when the module itself, not only its layers, acts differently in training and
            evaluation, which a graph cannot show.
    """
    modes = {m: m.training for m in module.modules()}
    try:
        graphs = [RenormTracer().trace(module.train(mode)) for mode in (False, True)]
    finally:
        for part, mode in modes.items():
            part.training = mode
    one, other = ([(n.op, str(n.target), str(n.args), str(n.kwargs)) for n in g.nodes] for g in graphs)
    if one != other:
        raise ValueError("the module does other operations in training than in evaluation: fuse its parts")
    fused = fx.GraphModule(module, graphs[1])
    modules = dict(fused.named_modules(remove_duplicate=False))
    calls = [node for node in fused.graph.nodes if node.op == "call_module"]
    for node in calls:
        if type(modules[node.target]) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            fused.graph.erase_node(node)
    for node in calls:
        if isinstance(modules[node.target], BatchRenorm):
            _take_in_what_follows(node, fused.graph, modules)
    fused.delete_all_unused_submodules()
    fused.recompile()
    fused.training = module.training
    return fused


def _take_in_what_follows(norm: fx.Node, graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    if len(norm.args) != 1 or norm.kwargs:
        return
    taken, settings = [norm], dict[str, Any]()
    after = _only_user(norm)
    if after is not None and (residual := _added(norm, after)) is not None:
        taken.append(after)
        settings["residual"] = residual
        after = _only_user(after)
    if after is not None and _is_relu(after, modules):
        taken.append(after)
        settings["relu"] = True
    if not settings:
        return
    # The call moves to the last operation's place: only there are all its inputs computed.
    with graph.inserting_before(taken[-1]):
        new = graph.call_module(str(norm.target), norm.args, settings)
    taken[-1].replace_all_uses_with(new)
    for node in reversed(taken):
        graph.erase_node(node)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added(norm: fx.Node, after: fx.Node) -> fx.Node | None:
    """What a sum adds to the layer's output; None if it is no sum, or changes its other operand in place."""
    if after.op not in ("call_function", "call_method") or len(after.args) != 2 or after.kwargs:
        return None
    first, second = after.args
    if after.target in _SUMS and second is norm:
        first, second = second, first
    if (after.target not in _SUMS and after.target not in _SUMS_IN_PLACE) or first is not norm:
        return None
    return second if isinstance(second, fx.Node) and second is not norm else None


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules[str(node.target)]) is nn.ReLU
    return node.op in ("call_function", "call_method") and node.target in _RELUS
