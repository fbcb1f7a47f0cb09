"""A tiny network whose running statistics differ from their initial values."""

from collections.abc import Callable

import pytest
import torch

from models.inference import Model
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess


def _network(**changes: object) -> EmbeddingNetwork:
    torch.manual_seed(0)
    values = {"backbone": "conv4", "backbone_args": {"width": 4}, "in_channels": 1, "embedding_dim": 8}
    network = EmbeddingNetwork(Architecture(**(values | changes)))
    size = 32 if network.architecture.backbone == "conv4" else 96
    for _ in range(3):
        network.train()(torch.randn(8, network.architecture.in_channels, size, size) * 2 + 1)
    return network.eval()


@pytest.fixture
def make_network() -> Callable[..., EmbeddingNetwork]:
    """Makes networks that differ from the default in parts of their architecture."""
    return _network


@pytest.fixture
def model() -> Model:
    return Model(_network(), Preprocess(size=32, mode="L"), "f" * 16)
