import copy

import pytest
import torch
from torch import nn

from models.inference import folded
from models.renorm import BatchRenorm2d


def normalizations(network: nn.Module) -> int:
    kinds = (BatchRenorm2d, nn.BatchNorm2d)
    return sum(isinstance(module, kinds) for module in network.modules())


@pytest.mark.parametrize("normalization", ["renorm", "batch"])
@pytest.mark.parametrize("backbone", ["conv4", "resnet10", "inception_v3"])
def test_nothing_is_left_to_normalize_and_vectors_stay(
    make_network, backbone: str, normalization: str
) -> None:
    args = {"conv4": {"width": 4}, "resnet10": {"width": 4}, "inception_v3": {}}[backbone]
    network = make_network(backbone=backbone, backbone_args=args, normalization=normalization, in_channels=3)
    before = copy.deepcopy(network.state_dict())
    twin = folded(network)
    images = torch.randn(3, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(twin(images), network(images), rtol=0, atol=1e-5)
    assert normalizations(network) > 0
    assert normalizations(twin) == 0
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


def test_what_cannot_be_folded_is_copied(make_network) -> None:
    network = make_network(normalization="group")
    images = torch.randn(3, 1, 32, 32)
    assert torch.equal(folded(network)(images), network(images))


class Branching(nn.Module):
    """Its forward depends on values, so no tracer follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 4, 3), BatchRenorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.convolution(images))
        return features.relu() if features.mean() > 0 else -features


def test_an_untraceable_backbone_stays_as_it_is(make_network) -> None:
    network = make_network()
    network.backbone = Branching().eval()
    network.head = nn.Identity()
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(folded(network)(images), network(images))
