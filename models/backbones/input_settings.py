"""Image settings of pretrained weights: size, normalization, interpolation."""

from statistics import fmean
from typing import Any

from models.backbones.registry import timm_name, torchvision_name
from models.backbones.weights import timm_weights, torchvision_weights, weights_file
from models.preprocess import Preprocess


def input_settings(backbone: str, weights: str | None, channels: int = 3) -> Preprocess | None:
    """The preprocessing that a backbone's weights were trained with; building or reading neither.

    Args:
        backbone: its name, as :func:`build_backbone` takes it.
        weights: as the embedding network takes them. A local file, and the packaged weights, are taken to
            have the settings of the backbone's default weights.
        channels: of the images, 1 or 3; grey ones have the mean over the colours.

    Returns:
        The settings, or None without weights or where they are unknown.

    Raises:
        InputError: the backbone has no weights of that name.
    """
    if weights is None:
        return None
    local = weights_file(backbone, weights) is not None
    given: Any
    if (model := timm_name(backbone)) is not None:
        import timm

        given = timm.get_pretrained_cfg(model if local else timm_weights(model, weights))
        if given is None:
            return None
        size, interpolation = given.input_size[-1], given.interpolation
    elif (model := torchvision_name(backbone)) is not None:
        given = torchvision_weights(model, "DEFAULT" if local else weights).transforms()
        size, interpolation = given.crop_size[0], given.interpolation.value
    else:
        return None
    mean, std = tuple(given.mean), tuple(given.std)
    if channels == 1:
        return Preprocess(size, "L", mean=(fmean(mean),), std=(fmean(std),), interpolation=interpolation)
    return Preprocess(size, mean=mean, std=std, interpolation=interpolation)
