"""Let the layers do the ReLU and the residual sum that follow them: one pass over memory instead of three."""

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from .fold import RenormTracer
from .layer import BatchRenorm

_RELUS: tuple[Any, ...] = (functional.relu, torch.relu, torch.relu_, "relu", "relu_")
_SUMS: tuple[Any, ...] = (operator.add, torch.add, "add")
_SUMS_IN_PLACE: tuple[Any, ...] = (operator.iadd, "add_")


def fuse_batch_renorm(module: nn.Module) -> fx.GraphModule:
    """The same network, in which each Batch Renormalization layer also does the sum with another tensor and
    the ReLU that follow it, where nothing else uses what lies between.

    Outputs and gradients are the same to rounding. It pays with the fused kernels (``native.build()``), which
    then pass over memory once. Parameters and layers are the module's own, under the same names: state
    dictionaries and optimizers hold on. Do it last: ``revert_to_batch_norm`` and ``fold_batch_renorm`` take
    the module, not the fused one.

    Args:
        module: traceable by ``torch.fx.symbolic_trace``, with the same operations in training and evaluation.

    Returns:
        A graph module, in the module's mode.

    Raises:
        ValueError: when training and evaluation differ otherwise than in their layers, which a graph cannot
            show.
    """
    modes = {m: m.training for m in module.modules()}
    try:
        graphs = [RenormTracer().trace(module.train(mode)) for mode in (False, True)]
    finally:
        for part, mode in modes.items():
            part.training = mode
    if _operations(graphs[0]) != _operations(graphs[1]):
        raise ValueError("the module does other operations in training than in evaluation: fuse its parts")
    fused = fx.GraphModule(module, graphs[1])
    modules = dict(fused.named_modules(remove_duplicate=False))
    for node in list(fused.graph.nodes):
        if node.op == "call_module" and isinstance(modules[node.target], BatchRenorm):
            _take_in_what_follows(node, fused.graph, modules)
    fused.delete_all_unused_submodules()
    fused.recompile()
    fused.training = module.training
    return fused


def _operations(graph: fx.Graph) -> list[tuple[str, ...]]:
    return [(node.op, str(node.target), str(node.args), str(node.kwargs)) for node in graph.nodes]


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
    # It runs where the last of them ran: only there is all that it needs at hand.
    with graph.inserting_before(taken[-1]):
        new = graph.call_module(str(norm.target), norm.args, settings)
    taken[-1].replace_all_uses_with(new)
    for node in reversed(taken):
        graph.erase_node(node)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added(norm: fx.Node, after: fx.Node) -> fx.Node | None:
    """What a sum adds to the layer's output; None where it is no sum, or changes the other in place."""
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
