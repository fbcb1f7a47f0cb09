"""Normalization of a batch in groups, at the price of normalizing it at once.

The groups become channels: (B, C, H, W), with the groups interleaved, is (B / G, G · C, H, W) without
copying, and one layer of G · C channels normalizes every group by its own statistics. The layer is the
product's own.
"""

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from models.renorm import BatchRenorm

Normalizer = nn.BatchNorm2d | BatchRenorm


class GroupedNormalization(nn.Module):
    """Trains with the statistics of each group, and tests as the ungrouped layer does.

    As with the paper's workers, every group starts a step from the same running statistics; :meth:`settle`
    then replaces these by the average over the groups (of standard deviations, for Batch Renormalization).

    Args:
        plain: the layer to group, of C channels: parameters and running statistics stay in it.
        groups: G.

    Attributes:
        wide: the layer of G · C channels that does the work in training. Not a submodule: it has no
            parameters of its own.
        by_batch: test with the statistics of each group instead of the running statistics.
    """

    def __init__(self, plain: Normalizer, groups: int) -> None:
        super().__init__()
        self.plain = plain
        self.groups = groups
        self.by_batch = False
        wide = deepcopy(plain).requires_grad_(False)
        wide.num_features = plain.num_features * groups
        for name, tensor in [*wide.named_parameters(), *wide.named_buffers()]:
            if tensor.dim() == 1 and name != "clipped":
                tensor.data = tensor.data.repeat(groups)
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
        else:
            y = functional_call(self.wide, {"weight": weight, "bias": bias}, (folded,))
        return y.reshape(x.shape)

    @torch.no_grad()
    def settle(self) -> None:
        """Average the running statistics over the groups; call it after each step."""
        if isinstance(self.wide, BatchRenorm) and isinstance(self.plain, BatchRenorm):
            averages = [self._average(v) for v in self.wide.averageable()]
            self.plain.set_averageable(averages)
            self.wide.set_averageable([v.repeat(self.groups) for v in averages])
            return
        for name in ("running_mean", "running_var"):
            average = self._average(getattr(self.wide, name))
            getattr(self.plain, name).copy_(average)
            getattr(self.wide, name).copy_(average.repeat(self.groups))

    def _average(self, values: Tensor) -> Tensor:
        return values.view(self.groups, -1).mean(0)


def group_normalization(network: nn.Module, groups: int) -> nn.Module:
    """Let every batch-normalizing layer of a network see G groups; other layers stay as they are.

    Args:
        network: changed in place.
        groups: G; batches must be multiples of it, with the groups interleaved.
    """
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d | BatchRenorm) and type(child).__name__[:6] != "Frozen":
            setattr(network, name, GroupedNormalization(child, groups))
        else:
            group_normalization(child, groups)
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
