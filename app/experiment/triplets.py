"""One run of metric learning: normalized in groups of few classes, tested on classes unseen in training."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from app.experiment.batches import Batch, GradientBatches
from app.experiment.classification import build_classifier, classify, predictions
from app.experiment.experiment_config import Setting
from app.experiment.grouped import group_normalization, ungroup_normalization
from app.experiment.loading import Images, Loaded, load_images
from app.experiment.training import Objective, Progress, train
from models.cache_folder import cache_root
from models.callbacks.embedding_gap import embedding_gap
from models.errors import InputError
from models.files import replacing
from models.losses import FaceNetTripletLoss, build
from models.metrics import retrieval_metrics
from models.mining import semi_hard_triplets
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess


def run_triplets(setting: Setting, seed: int, progress: Progress, device: str = "cpu") -> dict[str, Any]:
    """Train and test one variant, as :func:`app.experiment.classification.run_classification`.

    The metrics are of retrieval among the unseen classes, and gap/training is the mean of 1 − cosine between
    an image's embedding in training and in evaluation.

    Raises:
        InputError: the data have no unseen classes.
    """
    if not setting.data.unseen:
        raise InputError("triplets are tested on unseen classes: set data.unseen")
    data = load_images(setting.data)
    batches = GradientBatches(setting, data.train, data.preprocess, seed, device)
    if setting.mining == "batch" and batches.passes > 1:
        raise InputError("mining across the batch needs it in one pass")
    weights = setting.weights
    if setting.pretraining is not None:
        weights = _pretrained(setting, data, seed, progress, device)
    torch.manual_seed(seed)
    architecture = Architecture(
        setting.backbone,
        setting.backbone_args,
        setting.normalization,
        setting.normalization_args,
        data.preprocess.channels,
        setting.embedding_dim,
    )
    network = EmbeddingNetwork(architecture, weights)
    network.to(device)
    if batches.groups > 1:
        # Channels innermost, its own choice, would make every view in groups a copy.
        network.to(memory_format=torch.contiguous_format)
    group_normalization(network, batches.groups, batches.consecutive, batches.shared_momentum)

    def measure(network: nn.Module) -> dict[str, float]:
        return {"recall@1": _retrieval(network, data.val, data.preprocess)["recall@1"]}

    loss = build(setting.loss, {"num_classes": data.classes, "embedding_size": setting.embedding_dim})
    if loss is None:
        objective = triplet_objective(setting, batches.groups)
        trained = train(setting, network, batches, objective, measure, progress)
    else:
        loss.to(device)
        trained = train(setting, network, batches, whole(loss), measure, progress, loss.parameters())
    tested = trained.network.train()
    last = batches[setting.steps - 1][0].images
    with torch.no_grad():
        gap = embedding_gap(tested, last, tested(last))
    found = _retrieval(tested, data.val, data.preprocess)
    kept = {key: found[key] for key in ("recall@1", "recall@8", "map@r")}
    return trained.record({**kept, "gap/training": float(gap)}, data.split_hash)


def triplet_objective(setting: Setting, groups: int) -> Objective:
    """FaceNet's loss on semi-hard triplets from inside each group, or from the whole batch."""
    loss_of = FaceNetTripletLoss()

    def objective(network: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        embeddings = network(batch.images)
        mined = mine(embeddings.detach(), batch.labels, groups if setting.mining == "groups" else 1)
        active = float(len(mined[0]) > 0)
        loss: Tensor = loss_of(embeddings, batch.labels, mined)
        return loss, {"triplets/any": active}

    return objective


def whole(loss: nn.Module) -> Objective:
    """A loss of pytorch-metric-learning on the whole batch."""

    def objective(network: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        return loss(network(batch.images), batch.labels), {}

    return objective


def mine(embeddings: Tensor, labels: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Semi-hard triplets whose three images are in one group.

    Position i of the unit vectors (B, D) and of the int64 labels (B,) is of group i modulo ``groups``.
    """
    distances = (embeddings @ embeddings.T).mul_(-2).add_(2)
    group = torch.arange(len(labels), device=labels.device) % groups
    together = group[:, None] == group[None, :]
    same = labels[:, None] == labels[None, :]
    positives = (same & together).fill_diagonal_(False)
    return semi_hard_triplets(distances, positives, ~same & together)


def _retrieval(network: nn.Module, images: Images, preprocess: Preprocess) -> dict[str, float]:
    embeddings, labels = predictions(network, images, preprocess)
    return retrieval_metrics(embeddings, labels.numpy(), (1, 8))


def _pretrained(setting: Setting, data: Loaded, seed: int, progress: Progress, device: str) -> str:
    """A file with the weights of a backbone that classifies the classes set apart; made once a seed."""
    if data.pretrain is None or setting.pretraining is None:
        raise InputError("pretraining needs classes set apart: set data.pretraining")
    change: dict[str, Any] = {
        "task": "classification",
        "normalization": "batch",
        "normalization_args": {},
        "ramps": {},
        "groups": None,
        "mining": "groups",
        "passes": 1,
        "average": None,
        "head_learning_rate": None,
        "loss": None,
        "weights": None,
        "pretraining": None,
        "steps": setting.pretraining.steps,
        "learning_rate": setting.pretraining.learning_rate,
    }
    first = setting.model_copy(update=change)
    key = json.dumps([first.model_dump(mode="json"), data.split_hash, seed, torch.__version__])
    path = cache_root() / "experiments" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.pt"
    if not path.is_file():
        batches = GradientBatches(first, data.pretrain, data.preprocess, seed, device)
        network = build_classifier(first, batches, int(data.pretrain.labels.max()) + 1, seed)
        train(first, network, batches, classify, lambda _: {}, progress)
        backbone = ungroup_normalization(network)[0]  # type: ignore[index]
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as fresh:
            torch.save(backbone.state_dict(), fresh)
    return str(path)
