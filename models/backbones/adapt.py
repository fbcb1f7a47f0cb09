"""Changes to a built backbone: remove the classifier, change the number of input channels."""

import torch
from torch import nn


def remove_classifier(backbone: nn.Module) -> int | None:
    """Replace the last nn.Linear of a torchvision classifier by the identity, in place.

    Returns:
        The width of the network's new output; None where there is no Linear.
    """
    last = None
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear):
            last = (name, module)
    if last is None:
        return None
    name, linear = last
    parent, _, child = name.rpartition(".")
    setattr(backbone.get_submodule(parent), child, nn.Identity())
    return linear.in_features


def first_convolution(backbone: nn.Module) -> tuple[str, nn.Conv2d | None]:
    """The first convolution with its name; an empty name and None where there is none."""
    found = ((name, module) for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d))
    return next(found, ("", None))


def set_input_channels(backbone: nn.Module, channels: int) -> None:
    """Make the first convolution take `channels` channels, in place.

    The new weights are the mean over the old channels, scaled so that a grey image repeated over the channels
    gives the same output as before.
    """
    name, module = first_convolution(backbone)
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
