"""Building losses and miners from configuration, FaceNet's loss, and a cross-batch memory that resumes."""

import importlib
import inspect
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import (
    BaseMetricLossFunction,
    CrossBatchMemory,
    ManifoldLoss,
    SelfSupervisedLoss,
    TripletMarginLoss,
    VICRegLoss,
)
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor, nn

from models.errors import InputError

Spec = Mapping[str, Any]
SEARCHED = (
    "pytorch_metric_learning.losses",
    "pytorch_metric_learning.miners",
    "models.mining",
    "models.losses",
)


class FaceNetTripletLoss(TripletMarginLoss):  # type: ignore[misc]  # the library ships no types
    """FaceNet's triplet loss: the mean over all triplets of max(0, d(a, p) − d(a, n) + margin).

    d is the squared Euclidean distance between normalised embeddings. The mean counts inactive triplets too,
    so the loss falls as the network learns (the library's default averages over active triplets only, and
    stays near the margin).

    Args:
        margin: how much farther a negative should be than a positive, in squared distance (0 to 4).
        swap: use the distance from positive to negative where it is smaller.
        smooth_loss: use softplus instead of the hinge.
    """

    def __init__(self, margin: float = 0.2, swap: bool = False, smooth_loss: bool = False) -> None:
        distance = LpDistance(normalize_embeddings=True, p=2, power=2)
        super().__init__(margin, swap, smooth_loss, distance=distance, reducer=MeanReducer())


class ResumableMemory(CrossBatchMemory):  # type: ignore[misc]  # the library ships no types
    """Cross-batch memory (Wang et al. 2020): each batch is also compared with earlier embeddings.

    The library's class loses its position in the queue when a run resumes; here the whole state is in the
    state dict. The memory is not in buffers, so that a moving average of the weights leaves it alone.

    Args:
        loss: any loss of the library that takes reference embeddings.
        embedding_size: dimension of the embeddings.
        memory_size: number of embeddings kept; at least the global batch.
        miner: mines the batch against the memory.
    """

    @staticmethod
    def supported_losses() -> list[str]:
        """Names of the losses that take reference embeddings, this module's triplet loss included."""
        return [*CrossBatchMemory.supported_losses(), FaceNetTripletLoss.__name__]

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        """Check that a loss can compare embeddings with references.

        Raises:
            InputError: it cannot.
        """
        if loss_name not in cls.supported_losses():
            known = ", ".join(cls.supported_losses())
            raise InputError(
                f"memory_size: {loss_name} cannot use a memory; leave it out, or take one of {known}"
            )

    def forward(self, embeddings: Tensor, labels: Tensor, *pairs: Any, **named: Any) -> Tensor:
        """The loss of a batch, (B, embedding_size) and labels (B,), against the memory, which it then joins.

        Raises:
            InputError: the batch is larger than the memory.
        """
        if len(embeddings) > self.memory_size:
            raise InputError(
                f"memory_size {self.memory_size} is smaller than the batch: give at least {len(embeddings)}"
            )
        loss: Tensor = super().forward(embeddings, labels, *pairs, **named)
        return loss

    def reset_queue(self) -> None:
        """Empty the memory."""
        for name in ("embedding_memory", "label_memory"):
            self._buffers.pop(name, None)
        self.embedding_memory = torch.zeros(self.memory_size, self.embedding_size)
        self.label_memory = torch.zeros(self.memory_size, dtype=torch.long)
        self.has_been_filled = False
        self.queue_idx = 0

    def get_extra_state(self) -> dict[str, Any]:
        """The memory and the position in its queue."""
        return {
            "embeddings": self.embedding_memory,
            "labels": self.label_memory,
            "queue_idx": self.queue_idx,
            "has_been_filled": self.has_been_filled,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned.

        Raises:
            InputError: the memory had another size.
        """
        if state["embeddings"].shape != (self.memory_size, self.embedding_size):
            raise InputError(
                f"cross-batch memory: the checkpoint holds {tuple(state['embeddings'].shape)}, "
                f"the configuration asks for {(self.memory_size, self.embedding_size)}; make them equal"
            )
        self.embedding_memory = state["embeddings"].clone()
        self.label_memory = state["labels"].clone()
        self.queue_idx = int(state["queue_idx"])
        self.has_been_filled = bool(state["has_been_filled"])


def plain_spec(value: Any) -> Any:
    """A spec in which jsonargparse's namespaces, as it gives nested specs, are dicts, at any depth."""
    if isinstance(value, Namespace | Mapping):
        entries = vars(value) if isinstance(value, Namespace) else value
        return {key: plain_spec(entry) for key, entry in entries.items()}
    return [plain_spec(entry) for entry in value] if isinstance(value, list) else value


def build(spec: Spec | nn.Module | None, defaults: Mapping[str, Any] | None = None) -> nn.Module | None:
    """Build a loss, miner, distance, reducer or regularizer from `class_path` and `init_args`.

    Args:
        spec: {"class_path": ..., "init_args": {...}}, whose values may be such mappings again, or lists or
            mappings of them; a module or None is returned unchanged. A bare class name is looked up in
            `SEARCHED`.
        defaults: arguments to pass where the constructor, or a base that it passes `**kwargs` on to, has a
            parameter of that name and the spec leaves it out: so proxy and classification losses get the
            number of classes and the embedding's dimension.

    Raises:
        InputError: the class cannot be found, is not an nn.Module, refuses the arguments, or is a loss that
            learns without labels.
    """
    if spec is None or isinstance(spec, nn.Module):
        return spec
    unknown = set(spec) - {"class_path", "init_args"}
    if "class_path" not in spec or unknown:
        raise InputError(f"expected class_path and init_args, found {sorted(spec)}")
    path = str(spec["class_path"])
    target = _find(path)
    if not (isinstance(target, type) and issubclass(target, nn.Module)):
        raise InputError(f"{path} is not an nn.Module")
    if issubclass(target, ManifoldLoss | SelfSupervisedLoss | VICRegLoss):
        raise InputError(f"{path} takes no labels: name a loss that learns from labels")
    args = {key: _built(value, defaults) for key, value in (spec.get("init_args") or {}).items()}
    known = _parameters(target)
    for key, value in (defaults or {}).items():
        if value is None:
            continue
        if key in known and args.get(key) is None:
            args[key] = value
        given = args.get(key, value)
        if given != value and not (key == "num_classes" and given >= value):
            raise InputError(f"{path}: {key} is {given} and should be {value}; leave it out")
    if "num_classes" in known and args.get("num_classes") is None:
        raise InputError(f"{path} needs num_classes: give it to the model, or link it from the data")
    try:
        return target(**args)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise InputError(f"{path} cannot be built with {args}: {error}") from error


def _built(value: Any, defaults: Mapping[str, Any] | None) -> Any:
    """An argument whose specs, at any depth, are replaced by modules."""
    if isinstance(value, list):
        return [_built(item, defaults) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "class_path" in value:
        return build(value, defaults)
    return {key: _built(item, defaults) for key, item in value.items()}


def check_roles(loss: nn.Module, miner: nn.Module | None) -> None:
    """Check that a loss and a miner can be called as such.

    Raises:
        InputError: the loss or the miner is something else.
    """
    try:
        inspect.signature(loss.forward).bind("embeddings", "labels", "pairs")
        fits = not isinstance(loss, BaseMiner) and not type(loss).__module__.startswith("torch.nn.")
    except TypeError:
        fits = False
    if not fits:
        raise InputError(
            f"loss: {type(loss).__name__} is not called with embeddings, labels and mined pairs: name a loss "
            "of pytorch_metric_learning.losses"
        )
    if isinstance(miner, BaseMetricLossFunction) or type(miner).__module__.startswith("torch.nn."):
        raise InputError(
            f"miner: {type(miner).__name__} is none: name a class of pytorch_metric_learning.miners"
        )


def _parameters(target: type) -> set[str]:
    """Names of a constructor's parameters, and of those of its bases that `**kwargs` reach."""
    known: set[str] = set()
    for base in inspect.getmro(target):
        if (constructor := vars(base).get("__init__")) is not None:
            parameters = inspect.signature(constructor).parameters
            known |= set(parameters)
            if all(parameter.kind != inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return known


def _find(path: str) -> Any:
    module, _, name = path.rpartition(".")
    for place in [module] if module else SEARCHED:
        try:
            return getattr(importlib.import_module(place), name)
        except (ImportError, AttributeError):
            continue
    raise InputError(f"{path} cannot be found; name a class of pytorch_metric_learning or its full path")


@torch.no_grad()
def triplet_statistics(
    embeddings: Tensor, triplets: tuple[Tensor, Tensor, Tensor], margin: float
) -> dict[str, Tensor]:
    """Scalars to log while training with triplets; none where there are no triplets.

    `active_triplets` is the fraction that violates the margin; `ap_distance` and `an_distance` are the mean
    Euclidean distances to positives and negatives.

    Args:
        embeddings: float (B, D) unit vectors; also the references.
        triplets: indices of anchors, positives and negatives, int64 (T,) each.
        margin: of the loss, in squared distance.
    """
    anchors, positives, negatives = triplets
    if len(anchors) == 0:
        return {}
    squared = (embeddings @ embeddings.T).mul_(-2).add_(2).clamp_min_(0)
    near, far = squared[anchors, positives], squared[anchors, negatives]
    return {
        "active_triplets": (near - far + margin > 0).float().mean(),
        "ap_distance": near.sqrt().mean(),
        "an_distance": far.sqrt().mean(),
    }


@torch.no_grad()
def embedding_variance(embeddings: Tensor) -> Tensor:
    """Total variance of unit vectors (B, D): 1 − |mean|², from 0 (all equal) to 1 (spread out)."""
    return 1 - embeddings.mean(0).square().sum()
