"""Building a backbone by name; which names need trust_code."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn

from models.errors import InputError
from models.eval_mode import eval_mode
from models.renamed import renamed

OWN = {
    "conv4": "models.backbones.conv4.Conv4",
    "resnet10": "models.backbones.resnet10.ResNet10",
    "inception_resnet_v1": "models.backbones.inception_resnet_v1.InceptionResnetV1",
}
# Arguments that would make a builder download or unpickle a file: only `weights` may load weights.
LOADING_ARGUMENTS = ("weights", "pretrained", "checkpoint", "cache_dir", "progress", "hf_hub", "model_name")


def build_backbone(
    name: str,
    args: Mapping[str, Any] | None = None,
    in_channels: int = 3,
    trust_code: bool = False,
) -> nn.Module:
    """Build a backbone with random weights and no classifier.

    Args:
        name: "conv4", "resnet10", "inception_resnet_v1"; a torchvision classification model ("resnet50", or
            "torchvision.models.resnet50"); "timm.<model name>" or "timm.models.resnet.resnet18"; or the class
            path of any nn.Module, or of a function that makes one, which needs `trust_code`.
        args: keyword arguments of its constructor. For timm's classes, with `trust_code`, strings that begin
            with "timm." are imported (`block: timm.models.resnet.BasicBlock`).
        in_channels: passed to the constructor where it has such a parameter.
        trust_code: allow classes outside models.backbones, torchvision.models and timm.

    Returns:
        A module (B, C, H, W) → (B, features) or (B, features, H', W').

    Raises:
        InputError: the name is unknown or not allowed, or the arguments do not fit.
    """
    arguments = renamed(OWN.get(name, name).rpartition(".")[2], args or {})
    forbidden = [key for key in arguments if key.startswith(LOADING_ARGUMENTS)]
    if forbidden:
        raise InputError(
            f"backbone {name}: take {forbidden[0]!r} out of backbone_args; weights are a key of their own"
        )
    build = _builder(name, trust_code)
    if name.startswith("timm.") and trust_code:
        arguments = {
            key: _import(value) if isinstance(value, str) and value.startswith("timm.") else value
            for key, value in arguments.items()
        }
    if "in_channels" in inspect.signature(build).parameters:
        arguments.setdefault("in_channels", in_channels)
    elif name.startswith("timm."):
        arguments.setdefault("in_chans", in_channels)
    try:
        backbone = build(**arguments)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"backbone {name} cannot be built with {arguments}: {error}") from error
    if not isinstance(backbone, nn.Module):
        raise InputError(f"backbone {name} is not an nn.Module")
    return backbone


def torchvision_name(name: str) -> str | None:
    """The torchvision model for a backbone's name, or None."""
    short = name.removeprefix("torchvision.models.")
    return short if short in torchvision.models.list_models(module=torchvision.models) else None


def timm_name(name: str) -> str | None:
    """The timm model for "timm.<model>" or "timm.models.<module>.<model>"; None for other backbones.

    Raises:
        InputError: timm has no model of that name.
    """
    if not name.startswith("timm."):
        return None
    import timm

    model = name.removeprefix("timm.")
    if model.startswith("models."):
        model = model.rpartition(".")[2]
        return model if timm.is_model(model) else None
    if not timm.is_model(model):
        raise InputError(f"timm has no model {model!r}; timm.list_models() names them")
    return model


def _builder(name: str, trust_code: bool) -> Callable[..., Any]:
    if name in OWN or name in OWN.values():
        return _import(OWN.get(name, name))
    if (known := torchvision_name(name)) is not None:
        return partial(_torchvision_model, known)
    if (model := timm_name(name)) is not None:
        return partial(_timm_model, model)
    if "." not in name:
        raise InputError(
            f"backbone {name!r} is unknown; one of {', '.join(OWN)}, a torchvision model or a class path"
        )
    if not trust_code:
        raise InputError(
            f"backbone {name} is code outside models.backbones, torchvision and timm; set trust_code"
        )
    return _import(name)


def _timm_model(name: str, **arguments: Any) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    return model


def _torchvision_model(name: str, **arguments: Any) -> nn.Module:
    if name in ("inception_v3", "googlenet"):
        # No auxiliary classifier, and torch's default initialization (the models' own takes seconds).
        arguments = {"aux_logits": False, "init_weights": False, **arguments}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    linears = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if linears:  # SqueezeNet ends in a convolution
        path, last = linears[-1]
        model.set_submodule(path, nn.Identity())
        model.num_features = last.in_features  # type: ignore[assignment]
    return model


def _import(path: str) -> Callable[..., Any]:
    module, _, attribute = path.rpartition(".")
    try:
        found: object = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{path} cannot be imported: {error}") from error
    if not callable(found):
        raise InputError(f"{path} is not a class or function")
    return found


def feature_width(backbone: nn.Module, name: str, in_channels: int) -> int:
    """Number of features that a headless backbone returns.

    It is in `num_features` or, where a layer follows the pooling (timm's MobileNetV3), in `head_hidden_size`;
    networks of others are run on one blank image.

    Raises:
        InputError: the backbone has no such attribute and cannot take a 96-pixel image, or it does not return
            (B, F) or (B, F, H, W).
    """
    for attribute in ("head_hidden_size", "num_features"):
        said = getattr(backbone, attribute, None)
        if isinstance(said, int):
            return said
    try:
        with eval_mode(backbone), torch.no_grad():
            output = backbone(torch.zeros(1, in_channels, 96, 96))
    except RuntimeError as error:
        raise InputError(
            f"backbone {name}: give it an attribute num_features (a trial run failed: {error})"
        ) from error
    if not isinstance(output, torch.Tensor) or output.ndim not in (2, 4):
        raise InputError(f"backbone {name} must return a tensor (B, F) or (B, F, H, W)")
    return int(output.shape[1])
