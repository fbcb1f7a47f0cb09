"""Image settings of pretrained weights: size, normalization, interpolation."""

from dataclasses import dataclass, replace
from statistics import fmean
from typing import cast

from models.backbones.registry import timm_name, torchvision_name
from models.backbones.weights import timm_weights, torchvision_weights, weights_file
from models.preprocess import Interpolation


@dataclass(frozen=True)
class InputSettings:
    """Preprocessing of the images that weights were trained on.

    Attributes:
        size: side of the square, in pixels.
        mean: per channel, of values in [0, 1].
        std: per channel.
        interpolation: of the resize.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation

    def for_channels(self, channels: int) -> "InputSettings":
        """The same for images of `channels` channels; for grey ones, means over the colours."""
        if channels == len(self.mean):
            return self
        return replace(self, mean=(fmean(self.mean),) * channels, std=(fmean(self.std),) * channels)


def input_settings(backbone: str, weights: str | None) -> InputSettings | None:
    """The image settings of a backbone's weights, without building it or reading the weights.

    Args:
        backbone: its name, as :func:`build_backbone` takes it.
        weights: as the embedding network takes them. A local file, and the packaged weights, are taken to
            have the settings of the backbone's default weights.

    Returns:
        The settings, or None without weights or where they are unknown.

    Raises:
        InputError: the backbone has no weights of that name.
    """
    if weights is None:
        return None
    local = weights_file(backbone, weights) is not None
    if (model := timm_name(backbone)) is not None:
        import timm

        given = timm.get_pretrained_cfg(model if local else timm_weights(model, weights))
        if given is None:
            return None
        method = cast("Interpolation", given.interpolation)
        return InputSettings(given.input_size[-1], tuple(given.mean), tuple(given.std), method)
    if (model := torchvision_name(backbone)) is not None:
        shown = torchvision_weights(model, "DEFAULT" if local else weights).transforms()
        return InputSettings(
            shown.crop_size[0], tuple(shown.mean), tuple(shown.std), shown.interpolation.value
        )
    return None
