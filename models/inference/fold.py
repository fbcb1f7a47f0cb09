"""The network as inference wants it: no normalization layers left where a convolution can take them up."""

import copy

import torch
from torch import nn

from models.network import EmbeddingNetwork
from models.renorm import convert_to_batch_renorm, fold_batch_renorm


def folded(network: nn.Module) -> nn.Module:
    """A copy whose convolutions and linear layers have taken up the (re)normalization after them.

    Batch normalization is folded as Batch Renormalization, whose evaluation is the same. A backbone that
    cannot be traced, or whose normalization is of another kind, is copied as it is.

    Args:
        network: in evaluation mode; left as it is.

    Returns:
        The network's function, to rounding, in the channels_last memory format, without gradients.
    """
    twin = copy.deepcopy(network).eval().requires_grad_(False)
    if isinstance(twin, EmbeddingNetwork):
        twin.backbone = _folded_backbone(twin.backbone)
    return twin.to(memory_format=torch.channels_last)


def _folded_backbone(backbone: nn.Module) -> nn.Module:
    try:
        return fold_batch_renorm(convert_to_batch_renorm(copy.deepcopy(backbone)))
    except Exception:  # noqa: BLE001  (tracing runs the backbone's own code, which may raise anything)
        return backbone
