"""Make a bundle from a checkpoint or from a module in memory."""

import copy
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models.bundle import Bundle
from models.errors import InputError, first_line
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess

if TYPE_CHECKING:  # Lightning takes seconds to import, and most commands do not need it
    from data.datamodule import ImageDataModule
    from models.module import MetricLearner

NETWORK = "network."


def bundle_from_checkpoint(
    path: str | Path, preprocess: Preprocess | None = None, *, trust_code: bool = False
) -> Bundle:
    """Load the trained network from a Lightning checkpoint, without executing pickled code.

    If the run kept a moving average of the weights, the checkpoint has the averaged ones. If it had a
    :class:`~models.callbacks.pca_head.PCAHead`, the bundle has the latest fitted head.

    Args:
        path: A ``.ckpt`` file that ``kindred fit`` or a Trainer with a MetricLearner wrote.
        preprocess: Preprocessing of images; by default that of the run's data module.
        trust_code: See :meth:`models.bundle.Bundle.load`.

    Raises:
        InputError: The file is missing, damaged or not a checkpoint of kindred fit; or neither it nor
            ``preprocess`` gives a preprocessing that fits the network.
    """
    from models.callbacks.pca_head import directions_in

    checkpoint = read_checkpoint(Path(path))
    try:
        described: dict[str, Any] = checkpoint["kindred"]
        architecture = Architecture.from_dict(described["architecture"])
        if preprocess is None and described["preprocess"] is not None:
            preprocess = Preprocess.from_dict(described["preprocess"])
        weights = {
            key.removeprefix(NETWORK): value
            for key, value in checkpoint["state_dict"].items()
            if key.startswith(NETWORK)
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: no checkpoint of kindred fit (it lacks {error})") from error
    preprocess = _fitting(preprocess, architecture, str(path))
    network = EmbeddingNetwork(architecture, trust_code=trust_code)
    network.load_state_dict(weights)
    if (directions := directions_in(checkpoint)) is not None:
        network.adopt(directions)
    apart = ("architecture", "preprocess", "training_classes")
    info = {key: value for key, value in described.items() if key not in apart}
    info |= {"epoch": checkpoint.get("epoch"), "step": checkpoint.get("global_step")}
    seen = described.get("training_classes")
    return Bundle(network, architecture, preprocess, info=info, training_classes=seen)


def bundle_from_module(model: "MetricLearner", data: "ImageDataModule | Preprocess | None") -> Bundle:
    """Make a bundle of a network in memory, for users of a plain Trainer.

    Args:
        model: The trained module.
        data: The data module that it was trained with or, for loaders of your own, the preprocessing that
            makes their images.

    Raises:
        InputError: The preprocessing is unknown or does not fit the network.
    """
    given = data if isinstance(data, Preprocess) else getattr(data, "preprocess", None)
    preprocess = _fitting(given, model.architecture, "bundle_from_module")
    split = getattr(data, "split_settings", None)
    info = {
        "split_hash": getattr(data, "split_hash", None),
        "split": None if split is None else split.to_dict(),
        "num_classes": getattr(data, "num_classes", model.num_classes),
        "weights": model.weights,
    }
    seen = getattr(data, "training_classes", None)
    network = model.network
    if (projection := network.projection) is not None:
        network = copy.deepcopy(network)  # the module in training keeps its own head
        network.adopt(projection)
    return Bundle(network, model.architecture, preprocess, info=info, training_classes=seen)


def _fitting(preprocess: Preprocess | None, architecture: Architecture, what: str) -> Preprocess:
    """The preprocessing; an InputError if it is None or its channels do not fit the network."""
    mode = "RGB" if architecture.in_channels == 3 else "L"
    if preprocess is None:
        raise InputError(
            f"{what}: the run's data module has no preprocessing: give a Preprocess, "
            f'on the command line --preprocess \'{{"size": 224, "mode": "{mode}"}}\''
        )
    if preprocess.channels != architecture.in_channels:
        raise InputError(
            f"{what}: the network takes images of {architecture.in_channels} channels: set the Preprocess's "
            f"mode to {mode}"
        )
    return preprocess


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU without executing pickled code.

    Raises:
        InputError: The file is missing, damaged or no checkpoint.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; kindred fit writes them under RUN/checkpoints")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = first_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch advises to run the code in the file
            reason = "it is damaged, or holds more than tensors and plain values"
        raise InputError(f"{path}: cannot be read as a checkpoint ({reason})") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path}: no checkpoint of kindred fit")
    return checkpoint
