"""What every backend is, and the eager one: the folded network in plain torch."""

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from models.network import EmbeddingNetwork
from models.renorm import convert_to_batch_renorm, fold_batch_renorm


class Unavailable(Exception):  # noqa: N818  (a reason to use another backend rather than an error)
    """A backend cannot run this network here; the message says why and what would help."""


class Runner(Protocol):
    """A network prepared by a backend; may be called from several threads.

    Attributes:
        name: of the backend: "eager", "compiled" or "onnx".
        takes_pixels: whether it takes uint8 pixels and normalizes them itself, instead of float32 input.
    """

    name: str
    takes_pixels: bool

    def __call__(self, batch: Tensor) -> Tensor:
        """Embed a batch, (B, C, H, W) → float32 (B, dim) unit vectors; B may change from call to call."""
        ...


class EagerRunner:
    """Runs the folded network in torch, on its device."""

    name = "eager"
    takes_pixels = False

    def __init__(self, network: nn.Module) -> None:
        self._network = folded(network)

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        """See :class:`Runner`."""
        vectors: Tensor = self._network(batch.contiguous(memory_format=torch.channels_last))
        return vectors


def folded(network: nn.Module) -> nn.Module:
    """A copy of a network in evaluation mode, whose convolutions and linear layers include the normalization.

    The output is the same up to rounding. Batch normalization is folded as Batch Renormalization, which is
    equal in evaluation. A backbone that cannot be traced, or that has another normalization, is copied
    unchanged. The copy is in the channels_last memory format, without gradients.
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
