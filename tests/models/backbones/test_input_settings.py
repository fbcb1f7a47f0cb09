"""Which images weights want, known without building the network."""

from pathlib import Path

import pytest

from models.backbones import InputSettings, input_settings
from models.errors import InputError

HALVES, IMAGENET = ((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("backbone", "weights", "expected"),
    [
        ("timm.tf_efficientnet_lite0", "packaged", InputSettings(224, *HALVES, "bicubic")),
        ("timm.tf_efficientnet_lite0", "in1k", InputSettings(224, *HALVES, "bicubic")),
        ("timm.tf_efficientnet_lite0", "FILE", InputSettings(224, *HALVES, "bicubic")),
        ("timm.vit_small_patch14_dinov2", "lvd142m", InputSettings(518, *IMAGENET, "bicubic")),
        ("timm.vit_small_patch14_dinov2.lvd142m", "DEFAULT", InputSettings(518, *IMAGENET, "bicubic")),
        ("resnet18", "DEFAULT", InputSettings(224, *IMAGENET, "bilinear")),
        ("inception_v3", "IMAGENET1K_V1", InputSettings(299, *IMAGENET, "bilinear")),
        ("torchvision.models.resnet50", "FILE", InputSettings(224, *IMAGENET, "bilinear")),
        ("resnet10", "FILE", None),
        ("timm.models.resnet.ResNet", "FILE", None),
        ("resnet18", None, None),
    ],
)
def test_settings_are_those_of_the_weights(
    backbone: str, weights: str | None, expected: InputSettings | None, tmp_path: Path
) -> None:
    (tmp_path / "FILE").touch()
    assert input_settings(backbone, str(tmp_path / "FILE") if weights == "FILE" else weights) == expected


def test_grey_images_have_the_mean_over_the_colours() -> None:
    settings = input_settings("resnet18", "DEFAULT")
    assert settings is not None
    assert settings.for_channels(3) is settings
    grey = settings.for_channels(1)
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
