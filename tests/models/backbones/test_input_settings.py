"""Which images weights want, known without building the network."""

from pathlib import Path
from typing import Any

import pytest

from models.backbones import input_settings
from models.errors import InputError
from models.preprocess import Preprocess

HALVES: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize(
    ("backbone", "weights", "expected"),
    [
        ("timm.tf_efficientnet_lite0", "packaged", Preprocess(224, interpolation="bicubic", **HALVES)),
        ("timm.tf_efficientnet_lite0", "in1k", Preprocess(224, interpolation="bicubic", **HALVES)),
        ("timm.tf_efficientnet_lite0", "FILE", Preprocess(224, interpolation="bicubic", **HALVES)),
        ("timm.vit_small_patch14_dinov2", "lvd142m", Preprocess(518, interpolation="bicubic", **IMAGENET)),
        (
            "timm.vit_small_patch14_dinov2.lvd142m",
            "DEFAULT",
            Preprocess(518, interpolation="bicubic", **IMAGENET),
        ),
        ("resnet18", "DEFAULT", Preprocess(224, interpolation="bilinear", **IMAGENET)),
        ("inception_v3", "IMAGENET1K_V1", Preprocess(299, interpolation="bilinear", **IMAGENET)),
        ("torchvision.models.resnet50", "FILE", Preprocess(224, interpolation="bilinear", **IMAGENET)),
        ("resnet10", "FILE", None),
        ("timm.models.resnet.ResNet", "FILE", None),
        ("resnet18", None, None),
    ],
)
def test_settings_are_those_of_the_weights(
    backbone: str, weights: str | None, expected: Preprocess | None, tmp_path: Path
) -> None:
    (tmp_path / "FILE").touch()
    assert input_settings(backbone, str(tmp_path / "FILE") if weights == "FILE" else weights) == expected


def test_grey_images_have_the_mean_over_the_colours() -> None:
    grey = input_settings("resnet18", "DEFAULT", 1)
    assert grey is not None
    assert grey.mode == "L"
    assert grey.mean == pytest.approx((0.449,))
    assert grey.std == pytest.approx((0.226,))


@pytest.mark.parametrize(
    ("backbone", "weights"),
    [
        ("timm.test_vit", "in22k"),
        ("resnet18", "in22k"),
        ("resnet18", "packaged"),
        ("timm.resnet19", "DEFAULT"),
    ],
)
def test_unknown_names_are_refused(backbone: str, weights: str) -> None:
    with pytest.raises(InputError):
        input_settings(backbone, weights)
