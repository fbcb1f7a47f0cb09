"""A head for evaluation: principal components of the backbone's features and the trained head's outputs."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from models.errors import InputError
from models.eval_mode import eval_mode
from models.gathering import gather_rows
from models.network import EmbeddingNetwork

_STATE_KEY = "PrincipalHead"


class PCAHead(Callback):
    """Fit the head that evaluation uses: before each validation, or after each epoch without one.

    A loss on training classes makes the last layer discard information that other classes need and that the
    features before it still have (Chen et al., SimCLR, ICML 2020, section 4.2). This callback concatenates
    the features of a sample of training images with the trained head's outputs for them, and projects on the
    first ``embedding_dim`` principal directions (neither centred nor whitened, so that cosines change
    little). Training continues with its own head; validation, checkpoints and bundles use the fitted one.

    It needs a data module with ``training_images``, as ImageDataModule has, and a linear head.

    Args:
        images: size of the sample, over all processes.
        head_weight: share of the trained head's outputs, without its bias, in the mean square: 0 uses the
            features alone, 1 the trained head alone.

    Raises:
        InputError: the head is not linear, there are fewer features than embedding dimensions,
            ``head_weight`` is outside [0, 1], or the data module has no ``training_images``.
    """

    def __init__(self, images: int = 4096, head_weight: float = 0.25) -> None:
        if not 0 <= head_weight <= 1:
            raise InputError(f"PCAHead: head_weight is a fraction between 0 and 1, not {head_weight}")
        self.images, self.head_weight = images, head_weight
        self.directions: Tensor | None = None
        self._loader: Any = None
        self._fitted_at: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the network and the data module; restore a resumed run's directions."""
        if not hasattr(getattr(trainer, "datamodule", None), "training_images"):
            raise InputError("PCAHead needs a data module with training_images, such as ImageDataModule")
        network, head = _network_and_head(pl_module)
        if self.directions is not None:
            network.projection = self.directions.to(head.weight)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Fit with the weights that will be validated: a moving average is in place by now."""
        del batch
        if not trainer.sanity_checking and batch_idx == dataloader_idx == 0:
            self._fit(trainer, pl_module)

    on_test_batch_start = on_validation_batch_start
    on_predict_batch_start = on_validation_batch_start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit after an epoch without validation."""
        if self._fitted_at != trainer.global_step:
            self._fit(trainer, pl_module)

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint: the class's former name, so that older runs can be resumed."""
        return _STATE_KEY

    def state_dict(self) -> dict[str, Any]:
        """The latest projection, (embedding_dim, features)."""
        return {"directions": self.directions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the projection of a checkpoint."""
        self.directions = state_dict["directions"]

    def _fit(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network, head = _network_and_head(pl_module)
        if self._loader is None:
            self._loader = trainer.datamodule.training_images(self.images)  # type: ignore[attr-defined]
        # Lightning evaluates in inference mode, whose tensors cannot be used for training.
        with eval_mode(network), torch.inference_mode(False), torch.no_grad():
            with trainer.precision_plugin.val_step_context():
                convert = trainer.precision_plugin.convert_input
                found = [
                    network.features(convert(batch["image"]).to(pl_module.device)).float()
                    for batch in self._loader
                ]
            everyone = gather_rows(torch.cat(found))
            self.directions = fitted_projection(everyone, head.weight.float(), self.head_weight).cpu()
            network.projection = self.directions.to(head.weight)
        self._fitted_at = trainer.global_step


def principal_directions(features: Tensor, count: int) -> Tensor:
    """The directions along which features (N, D) have the largest mean square, largest first: (count, D).

    Orthonormal rows, zero beyond the N that N images can have. Computed by randomized SVD (Halko et al. 2011)
    with a fixed seed.
    """
    images, width = features.shape
    devices = [features.device] if features.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        _, _, directions = torch.svd_lowrank(features, q=min(count + 32, images, width), niter=4)
    found = directions[:, :count].T
    return torch.cat([found, found.new_zeros(count - len(found), width)])


def fitted_projection(features: Tensor, head: Tensor, head_weight: float) -> Tensor:
    """Principal components of features and a trained head's outputs, as one projection of the features.

    Args:
        features: float (N, D).
        head: the head's weight, (count, D).
        head_weight: the head's share of the mean square, in [0, 1].

    Returns:
        (count, D); applied to ``features`` it gives the first ``count`` principal components of the
        concatenation, (N, D + count), of features and head outputs.

    Raises:
        InputError: they are not finite.
    """
    found = features @ head.T
    of_head = (head_weight / _mean_square(found)) ** 0.5
    of_features = ((1 - head_weight) / _mean_square(features)) ** 0.5
    beside = torch.cat([of_features * features, of_head * found], dim=1)
    if not bool(beside.isfinite().all()):
        raise InputError(
            "PCAHead: features or embeddings are NaN or infinite: training diverged; lower the learning rates"
        )
    directions, width = principal_directions(beside, len(head)), features.shape[1]
    projection: Tensor = of_features * directions[:, :width] + of_head * directions[:, width:] @ head
    return projection


def _mean_square(vectors: Tensor) -> float:
    return max(float(vectors.square().sum(1).mean()), torch.finfo(torch.float32).tiny)


def directions_in(checkpoint: Mapping[str, Any]) -> Tensor | None:
    """The projection that a PCAHead saved in a Lightning checkpoint, or None."""
    state = checkpoint.get("callbacks", {}).get(_STATE_KEY, {})
    directions: Tensor | None = state.get("directions")
    return directions


def _network_and_head(module: LightningModule) -> tuple[EmbeddingNetwork, nn.Linear]:
    network = getattr(module, "network", None)
    if not isinstance(network, EmbeddingNetwork) or not isinstance(network.head, nn.Linear):
        raise InputError("PCAHead needs a MetricLearner with head: linear")
    count, width = network.head.weight.shape
    if count > width:
        raise InputError(f"PCAHead: embedding_dim {count} exceeds the backbone's {width} features")
    return network, network.head
