"""From a checkpoint, or a module trained in this process, to a bundle."""

import copy
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models.bundle import Bundle
from models.errors import InputError
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess

if TYPE_CHECKING:  # Lightning takes seconds to import, and most commands do without
    from data.datamodule import ImageDataModule
    from models.module import MetricLearner

NETWORK = "network."


def bundle_from_checkpoint(path: str | Path, *, trust_code: bool = False) -> Bundle:
    """Rebuild the trained network from a Lightning checkpoint, without running anything in it.

    Where the run kept a moving average of the weights, the checkpoint's weights are the averaged ones; where
    it had a :class:`~models.callbacks.principal_head.PrincipalHead`, the head is the one fitted last.

    Args:
        path: A ``.ckpt`` file that ``kindred fit`` wrote.
        trust_code: See :meth:`models.bundle.Bundle.load`.

    Raises:
        InputError: The file is missing, damaged, or no checkpoint of ours.
    """
    from models.callbacks.principal_head import directions_in

    checkpoint = _read(Path(path))
    try:
        described: dict[str, Any] = checkpoint["kindred"]
        architecture = Architecture.from_dict(described["architecture"])
        preprocess = Preprocess.from_dict(described["preprocess"])
        weights = {
            key.removeprefix(NETWORK): value
            for key, value in checkpoint["state_dict"].items()
            if key.startswith(NETWORK)
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: no checkpoint of kindred fit (it lacks {error})") from error
    network = EmbeddingNetwork(architecture, trust_code=trust_code)
    network.load_state_dict(weights)
    if (directions := directions_in(checkpoint)) is not None:
        network.adopt(directions)
    apart = ("architecture", "preprocess", "training_classes")
    info = {key: value for key, value in described.items() if key not in apart}
    info |= {"epoch": checkpoint.get("epoch"), "step": checkpoint.get("global_step")}
    seen = described.get("training_classes")
    return Bundle(network, architecture, preprocess, info=info, training_classes=seen)


def bundle_from_module(model: "MetricLearner", data: "ImageDataModule") -> Bundle:
    """The bundle of a network trained in this process, for users of a plain Trainer."""
    info = {
        "split_hash": data.split_hash,
        "split": data.split_settings.to_dict(),
        "num_classes": data.num_classes,
        "weights": model.weights,
    }
    seen = data.training_classes
    network = model.network
    if (projection := network.projection) is not None:
        network = copy.deepcopy(network)  # the one in training keeps its own head
        network.adopt(projection)
    return Bundle(network, model.architecture, data.preprocess, info=info, training_classes=seen)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; kindred fit writes them under RUN/checkpoints")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read as a checkpoint ({reason})") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path}: no checkpoint of kindred fit")
    return checkpoint
