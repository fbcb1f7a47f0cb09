"""The eager backend: the folded network, run by torch operation by operation."""

import torch
from torch import Tensor, nn

from models.inference.fold import folded


class EagerRunner:
    """Runs the folded network as it is.

    Args:
        network: in evaluation mode, on the device where it shall run.
    """

    name = "eager"
    takes_pixels = False

    def __init__(self, network: nn.Module) -> None:
        self._network = folded(network)

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        """See :class:`models.inference.runner.Runner`."""
        vectors: Tensor = self._network(batch.contiguous(memory_format=torch.channels_last))
        return vectors
