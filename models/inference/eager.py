"""The eager backend: the folded network in plain torch."""

import torch
from torch import Tensor, nn

from models.inference.fold import folded


class EagerRunner:
    """Runs the folded network in torch.

    Args:
        network: in evaluation mode, on the device where it is to run.
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
