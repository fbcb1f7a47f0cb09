"""Networks of timm: by name, by class path, and with another normalization than their own."""

import pytest
import torch
from timm.layers import BatchNormAct2d

from models.errors import InputError
from models.network import Architecture, EmbeddingNetwork
from models.normalization import KINDS, NormThenActivation, take_activations_out
from models.renorm import BatchRenorm2d


def build(backbone: str, trust_code: bool = False, **values: object) -> EmbeddingNetwork:
    torch.manual_seed(0)
    architecture = Architecture(**{"embedding_dim": 16, "backbone": backbone, **values})  # type: ignore[arg-type]
    return EmbeddingNetwork(architecture, trust_code=trust_code)


@pytest.mark.parametrize("normalization", ["renorm", "frozen_batch"])
def test_conversion_keeps_the_activations(normalization: str) -> None:
    """With the same weights and statistics, evaluation gives the same embeddings as timm's own layers."""
    own = build("timm.mobilenetv3_small_050", normalization="batch")
    assert sum(isinstance(m, BatchNormAct2d) for m in own.modules()) > 10
    with torch.no_grad():
        for module in own.modules():
            if isinstance(module, BatchNormAct2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    converted = build("timm.mobilenetv3_small_050", normalization=normalization)
    assert not any(isinstance(m, BatchNormAct2d) for m in converted.modules())
    names = dict(converted.named_modules())
    renamed = {}
    for key, value in own.state_dict().items():
        layer, _, leaf = key.rpartition(".")
        apart = isinstance(names[layer], NormThenActivation)
        renamed[f"{layer}.norm.{leaf}" if apart else key] = value
    converted.load_state_dict(renamed, strict=False)
    images = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(converted.eval()(images), own.eval()(images), rtol=1e-4, atol=1e-5)


def test_every_normalization_can_be_chosen() -> None:
    for kind in KINDS:
        network = build("timm.mobilenetv3_small_050", normalization=kind)
        assert network.eval()(torch.randn(2, 3, 96, 96)).shape == (2, 16)


@pytest.mark.parametrize(
    ("backbone", "args", "trusted"),
    [
        ("timm.resnet18", {}, False),
        ("timm.models.resnet.resnet18", {}, False),
        (
            "timm.models.resnet.ResNet",
            {"block": "timm.models.resnet.BasicBlock", "layers": [1, 1, 1, 1], "num_classes": 0},
            True,
        ),
    ],
)
def test_names_and_class_paths_train_a_step(backbone: str, args: dict[str, object], trusted: bool) -> None:
    network = build(backbone, trusted, backbone_args=args)
    assert any(isinstance(m, BatchRenorm2d) for m in network.modules())
    network(torch.randn(4, 3, 32, 32)).square()[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_code_that_is_no_model_needs_trust() -> None:
    with pytest.raises(InputError, match="trust_code"):
        build("timm.models.resnet.ResNet")
    with pytest.raises(InputError, match="trust_code"):
        build("timm.models._hub.download_cached_file")
    with pytest.raises(InputError, match="timm has no model 'resnet19'"):
        build("timm.resnet19")


def test_layers_of_others_are_left_alone() -> None:
    layer = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    assert type(take_activations_out(layer)[0]) is torch.nn.BatchNorm2d  # type: ignore[index]
