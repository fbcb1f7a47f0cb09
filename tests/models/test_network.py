"""The embedding network: every normalization, every family of backbones, weights, and what may be built."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.backbones import Conv4, InceptionResnetV1, ResNet10
from models.backbones.conv4 import ConvBlock, ResidualBlock
from models.errors import InputError
from models.network import Architecture, EmbeddingNetwork
from models.normalization import KINDS
from models.renorm import BatchRenorm2d, SyncBatchRenorm


def build(**values: object) -> EmbeddingNetwork:
    torch.manual_seed(0)
    return EmbeddingNetwork(Architecture(**{"in_channels": 1, "embedding_dim": 16, **values}))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_every_normalization_trains_evaluates_and_is_rebuilt_from_json(kind: str) -> None:
    network = build(normalization=kind, backbone_args={"width": 8})
    images = torch.randn(6, 1, 32, 32)
    if kind != "sync_batch":  # torch's runs on an accelerator alone in training
        network(images).square().sum().backward()
        grads = [p.grad for p in network.parameters() if p.requires_grad]
        assert all(g is not None and g.isfinite().all() for g in grads)
    network.eval()
    out = network(images)
    assert torch.allclose(out.norm(dim=1), torch.ones(6))
    assert torch.allclose(network(images[:2]), out[:2], atol=1e-5)  # no example looks at another
    again = EmbeddingNetwork(Architecture.from_dict(json.loads(json.dumps(network.architecture.to_dict()))))
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(images), out)


@pytest.mark.parametrize("kind", ["instance", "virtual_batch", "weight"])
def test_a_removed_normalization_says_what_to_take(kind: str) -> None:
    stored = Architecture().to_dict() | {"normalization": kind}
    with pytest.raises(InputError, match=f"{kind}' is no longer supported: train with one of renorm"):
        EmbeddingNetwork(Architecture.from_dict(stored))


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [
        ("conv4", {"width": [4, 8, 8, 16], "pooling": "flatten", "image_size": 35}, 35),
        ("conv4", {"width": 8}, 28),
        ("conv4", {"width": 8, "pool_before_norm": True}, 28),
        ("conv4", {"width": 8, "num_pools": 3, "residuals": [0, 1, 2, 1]}, 28),
        ("conv4", {"width": [4, 8, 8, 16], "pooling": "multiscale_stats"}, 35),
        ("resnet10", {"width": 4, "stem": "tiny"}, 28),
        ("resnet10", {"width": 4}, 48),
        ("resnet10", {"width": 4, "stem": "imagenet"}, 64),
        ("resnet18", {}, 64),
        ("torchvision.models.resnet34", {}, 64),
        ("mobilenet_v3_small", {}, 64),
        ("efficientnet_b0", {}, 64),
        ("inception_v3", {}, 96),
    ],
)
def test_backbones(name: str, args: dict[str, object], size: int) -> None:
    network = build(backbone=name, backbone_args=args)
    assert any(isinstance(m, BatchRenorm2d) for m in network.modules())
    assert not any(type(m) is nn.BatchNorm2d for m in network.modules())
    assert network(torch.randn(2, 1, size, size)).shape == (2, 16)


def test_residuals_change_nothing_where_their_normalization_scales_by_zero() -> None:
    torch.manual_seed(0)
    plain, deep = Conv4(1, 8).eval(), Conv4(1, 8, residuals=[1, 0, 2, 0]).eval()
    convolutions = [m for m in plain.modules() if isinstance(m, nn.Conv2d)]
    first = [m for m in deep.modules() if isinstance(m, ConvBlock)]
    refining = {id(m.change) for m in deep.modules() if isinstance(m, ResidualBlock)}
    assert len(refining) == 3
    images = torch.rand(2, 1, 32, 32)
    kept = [m[0] for m in first if id(m) not in refining]
    for one, other in zip(convolutions, kept, strict=True):
        assert isinstance(other, nn.Conv2d)
        other.load_state_dict(one.state_dict())
    assert not torch.allclose(deep(images), plain(images))
    for m in deep.modules():
        if isinstance(m, ResidualBlock):
            nn.init.zeros_(m.change[1].weight)
    assert torch.allclose(deep(images), plain(images))


def test_levels_are_means_and_deviations_of_every_block() -> None:
    network = Conv4(3, [4, 4, 6, 8], "multiscale_stats").eval()
    with torch.no_grad():
        images = torch.rand(2, 3, 32, 32)
        features = network(images)
        expected, level = [images], images
        for block in network.blocks:
            level = block(level)
            expected.append(level)
        means = torch.cat([level.mean((2, 3)) for level in expected], 1)
        deviations = torch.cat([level.std((2, 3), correction=0) for level in expected], 1)
        wanted = network.pool(torch.cat([means, deviations], 1))
    assert features.shape == (2, network.num_features)
    torch.testing.assert_close(features, wanted, atol=1e-3, rtol=0)
    assert torch.isfinite(
        torch.autograd.grad(network(torch.zeros(2, 3, 32, 32)).sum(), network.parameters())[0]
    ).all()


def test_convnext_keeps_its_layer_norm_and_refuses_renorm() -> None:
    network = build(backbone="convnext_tiny", normalization="layer")
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 16)
    with pytest.raises(InputError, match="no batch normalization that could become 'renorm'"):
        build(backbone="convnext_tiny")


def test_sync_renorm_is_the_synchronized_layer() -> None:
    network = build(normalization="sync_renorm", backbone_args={"width": 4})
    assert sum(isinstance(m, SyncBatchRenorm) for m in network.modules()) == 4


def test_frozen_batch_norm_stays_as_it_is() -> None:
    network = build(normalization="frozen_batch", backbone_args={"width": 4})
    before = {k: v.clone() for k, v in network.state_dict().items() if "blocks" in k and ".1." in k}
    network.train()
    network(torch.randn(8, 1, 32, 32) + 3)
    assert before
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


def test_inception_resnet_v1_takes_weights_in_the_communitys_naming(tmp_path: Path) -> None:
    """Names as in facenet-pytorch's files; a classifier's `logits` are left out."""
    source = InceptionResnetV1().eval()
    names = set(source.state_dict())
    assert {
        "conv2d_1a.conv.weight",
        "conv2d_4b.bn.running_var",
        "repeat_1.4.branch2.2.conv.weight",
        "repeat_1.0.conv2d.bias",
        "mixed_6a.branch1.2.bn.weight",
        "repeat_2.9.branch1.2.conv.weight",
        "mixed_7a.branch2.2.conv.weight",
        "repeat_3.4.branch1.1.bn.bias",
        "block8.branch0.conv.weight",
        "block8.conv2d.weight",
        "last_linear.weight",
        "last_bn.running_mean",
    } <= names
    assert "last_linear.bias" not in names
    file = tmp_path / "weights.pt"
    torch.save(
        source.state_dict() | {"logits.weight": torch.zeros(3, 512), "logits.bias": torch.zeros(3)}, file
    )
    architecture = Architecture("inception_resnet_v1", normalization="renorm", embedding_dim=512, head="none")
    network = EmbeddingNetwork(architecture, str(file)).eval()
    image = torch.randn(1, 3, 96, 96)
    expected = nn.functional.normalize(source(image))
    assert torch.allclose(network(image), expected, atol=1e-5)


def test_weights_convert_to_renorm_and_to_one_channel(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = ResNet10(3, width=4)
    source(torch.randn(16, 3, 32, 32) * 2 + 1)  # statistics that are not the initial ones
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    architecture = Architecture("resnet10", {"width": 4}, embedding_dim=32, head="none")
    network = EmbeddingNetwork(architecture, str(tmp_path / "weights.safetensors")).eval()
    images = torch.randn(3, 3, 32, 32)
    expected = nn.functional.normalize(source.eval()(images))
    assert torch.allclose(network(images), expected, atol=1e-5)


def test_torchvision_weights_drop_the_classifier_and_average_the_channels(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    source = resnet18().eval()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "weights.pt")
    grey = EmbeddingNetwork(
        Architecture("resnet18", normalization="batch", in_channels=1, embedding_dim=512, head="none"),
        str(tmp_path / "weights.pt"),
    ).eval()
    source.fc = nn.Identity()
    image = torch.randn(2, 1, 64, 64)
    expected = nn.functional.normalize(source(image.expand(-1, 3, -1, -1)))
    assert torch.allclose(grey(image), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": "conv5"}, "conv5"),
        ({"backbone": "torch.nn.Flatten"}, "trust_code"),
        ({"backbone": "os.system"}, "trust_code"),
        ({"backbone": "torchvision.models._utils.os.system"}, "trust_code"),
        ({"backbone": "models.backbones.weights.read_weights"}, "trust_code"),
        ({"backbone": "resnet18", "backbone_args": {"weights": "DEFAULT"}}, "weights"),
        ({"backbone": "resnet18", "backbone_args": {"no_such": 1}}, "resnet18"),
        ({"backbone": "timm.resnet18", "backbone_args": {"num_classes": 7}}, "num_classes"),
        ({"backbone_args": {"pooling": "flatten"}}, "image_size"),
        ({"normalization": "bacth"}, "bacth"),
        ({"normalization": "renorm", "normalization_args": {"rmx": 3}}, "rmx"),
        ({"normalization": "none", "normalization_args": {"x": 3}}, "no arguments"),
        ({"head": "none"}, "64"),
        ({"head": "mlp"}, "mlp"),
    ],
)
def test_what_cannot_be_built_says_why(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**values)


def test_any_module_by_class_path_when_trusted() -> None:
    architecture = Architecture(
        "torchvision.models.resnet.resnet18", {"num_classes": 24}, embedding_dim=8, normalization="batch"
    )
    with pytest.raises(InputError, match="trust_code"):
        EmbeddingNetwork(architecture)
    network = EmbeddingNetwork(architecture, trust_code=True)
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 8)
    assert network.head.in_features == 24


@pytest.mark.parametrize("content", [b"not a file of weights", b""])
def test_unusable_weight_files_are_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.pt"):
        EmbeddingNetwork(Architecture(), str(file))
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="names missing"):
        EmbeddingNetwork(Architecture(), str(file))
    with pytest.raises(InputError, match="no such file"):
        EmbeddingNetwork(Architecture("resnet18"), "IMAGENET_V9")


def test_unknown_architecture_keys_are_refused() -> None:
    with pytest.raises(InputError, match="depth"):
        Architecture.from_dict({"depth": 3})
