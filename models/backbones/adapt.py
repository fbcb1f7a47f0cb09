"""Changes to a built backbone: take the classifier off, take another number of input channels, load
weights.
"""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from models.backbones.registry import torchvision_name
from models.errors import InputError


def remove_classifier(backbone: nn.Module) -> tuple[int | None, str]:
    """Replace the last nn.Linear of a torchvision classifier by the identity, in place.

    Returns:
        The width of what the network now returns (None where there was no Linear), and the prefix of the
        removed layer's names in a state dict.
    """
    last = None
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear):
            last = (name, module)
    if last is None:
        return None, ""
    name, linear = last
    parent, _, child = name.rpartition(".")
    setattr(backbone.get_submodule(parent), child, nn.Identity())
    return linear.in_features, name + "."


def set_input_channels(backbone: nn.Module, channels: int) -> None:
    """Make the first convolution take `channels` channels, in place.

    Its weights become the mean over the old channels, scaled so that a grey image repeated over the channels
    gives the same output as before.
    """
    name, module = next(
        ((name, m) for name, m in backbone.named_modules() if isinstance(m, nn.Conv2d)), ("", None)
    )
    if module is None or module.in_channels == channels or module.groups != 1:
        return
    parent, _, child = name.rpartition(".")
    convolution = nn.Conv2d(
        channels,
        module.out_channels,
        module.kernel_size,  # type: ignore[arg-type]
        module.stride,  # type: ignore[arg-type]
        module.padding,  # type: ignore[arg-type]
        module.dilation,  # type: ignore[arg-type]
        bias=module.bias is not None,
        padding_mode=module.padding_mode,
    )
    with torch.no_grad():
        weight = module.weight.mean(dim=1, keepdim=True) * module.in_channels / channels
        convolution.weight.copy_(weight.expand_as(convolution.weight))
        if module.bias is not None and convolution.bias is not None:
            convolution.bias.copy_(module.bias)
    setattr(backbone.get_submodule(parent), child, convolution)


def read_weights(backbone_name: str, weights: str) -> dict[str, Tensor]:
    """State dict from a local file, or from torchvision by the name of the weights ("DEFAULT",
    "IMAGENET1K_V1").

    Files are .safetensors, or torch files, which are read with weights_only so that they run no code.

    Raises:
        InputError: there is neither such a file nor such a name, or the file holds no state dict.
    """
    path = Path(weights).expanduser()
    if not path.is_file():
        return _torchvision_weights(backbone_name, weights)
    try:
        state = (
            safetensors.torch.load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch raises many kinds; to the user all mean the same
        raise InputError(f"{path} cannot be read as weights: {error}".splitlines()[0]) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict")
    # A checkpoint of ours: what follows "network.backbone." is the backbone.
    prefix = next((p for p in ("network.backbone.", "backbone.") if any(k.startswith(p) for k in state)), "")
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _torchvision_weights(backbone_name: str, weights: str) -> dict[str, Tensor]:
    name = torchvision_name(backbone_name)
    if name is None:
        raise InputError(f"weights {weights}: no such file (backbone {backbone_name} has no weights by name)")
    known = torchvision.models.get_model_weights(name)
    if weights not in known.__members__:
        raise InputError(f"weights {weights}: no such file; {name} has {', '.join(known.__members__)}")
    state: dict[str, Tensor] = known[weights].get_state_dict(
        progress=True, check_hash=True, weights_only=True
    )
    return state


def load_weights(
    backbone: nn.Module, state: Mapping[str, Tensor], dropped: tuple[str, ...], source: str
) -> None:
    """Load a state dict into a backbone; every name must match, except those that begin with one of
    `dropped`.

    Raises:
        InputError: names are missing or left over, or shapes differ.
    """
    kept = {key: value for key, value in state.items() if not (dropped and key.startswith(dropped))}
    try:
        wrong = backbone.load_state_dict(kept, strict=False)
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
