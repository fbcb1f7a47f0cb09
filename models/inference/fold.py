"""Folding of normalization layers into convolutions, for inference."""

import copy

import torch
from torch import nn

from models.network import EmbeddingNetwork
from models.renorm import convert_to_batch_renorm, fold_batch_renorm


def folded(network: nn.Module) -> nn.Module:
    """A copy in which (re)normalization is folded into the convolution or linear layer before it.

    Batch normalization is folded as Batch Renormalization, which is equal in evaluation. A backbone that
    cannot be traced, or that has another normalization, is copied unchanged.

    Args:
        network: in evaluation mode; not changed.

    Returns:
        A network with the same output, up to rounding, in the channels_last memory format, without gradients.
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
