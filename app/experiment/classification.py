"""One run of classification: the gradient batch is fixed, and only the normalization is the variant's.

The classifier is tested with several statistics, to tell the leak from lagging averages.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from app.experiment.batches import Batch, GradientBatches
from app.experiment.experiment_config import Setting
from app.experiment.grouped import group_normalization, grouped_layers, ungroup_normalization
from app.experiment.loading import Images, load_images
from app.experiment.training import Progress, train
from models.backbones import build_backbone
from models.backbones.registry import feature_width
from models.normalization import set_normalization
from models.preprocess import Preprocess
from models.renorm import revert_to_batch_norm

_CURVE_IMAGES = 2000
_BATCH = 500
_CALIBRATION = 20


def run_classification(
    setting: Setting, seed: int, progress: Progress, device: str = "cpu"
) -> dict[str, Any]:
    """Train and test one variant; ``seed`` is that of weights, batches and augmentation.

    Returns:
        The record; see :meth:`app.experiment.training.Trained.record`.
    """
    data = load_images(setting.data)
    batches = GradientBatches(setting, data.train, data.preprocess, seed, device)
    network = build_classifier(setting, batches, data.classes, seed)
    count = len(data.val.labels)
    few = data.val.subset(np.arange(0, count, max(1, count // _CURVE_IMAGES)))

    def measure(network: nn.Module) -> dict[str, float]:
        return {"accuracy": accuracy(*predictions(network, few, data.preprocess))}

    trained = train(setting, network, batches, classify, measure, progress)
    return trained.record(test_metrics(trained.network, data.val, batches), data.split_hash)


def build_classifier(setting: Setting, batches: GradientBatches, classes: int, seed: int) -> nn.Module:
    """A network (B, C, H, W) → (B, classes) whose normalization sees the variant's groups.

    Weights depend on the seed alone: the normalization is chosen after they are drawn.
    """
    torch.manual_seed(seed)
    channels = batches.preprocess.channels
    backbone = build_backbone(setting.backbone, setting.backbone_args, channels)
    head = nn.Linear(feature_width(backbone, setting.backbone, channels), classes)
    network = nn.Sequential(backbone, head)
    network.to(batches.device)
    if setting.normalization == "frozen_batch":
        calibrate(network, batches, 1)
    set_normalization(network, setting.normalization, setting.normalization_args)
    return group_normalization(network, batches.groups, batches.consecutive, batches.shared_momentum)


def classify(network: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
    """Cross-entropy of a batch, and the fraction it gets right while training."""
    logits = network(batch.images)
    return (
        functional.cross_entropy(logits, batch.labels),
        {"accuracy/training": accuracy(logits.detach(), batch.labels)},
    )


@torch.no_grad()
def predictions(network: nn.Module, images: Images, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """Outputs in evaluation mode, (N, ...), and labels (N,), both on the CPU."""
    network.eval()
    device = next(network.parameters()).device
    items = np.arange(len(images.labels))
    parts = np.array_split(items, -(-len(items) // _BATCH))
    logits = [network(preprocess.normalize(images.take(part)).to(device)).cpu() for part in parts]
    return torch.cat(logits), torch.from_numpy(images.labels)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Fraction of images whose class has the highest logit."""
    return float((logits.argmax(1) == labels).float().mean())


def test_metrics(network: nn.Module, images: Images, batches: GradientBatches) -> dict[str, float]:
    """Accuracy and loss on images with each kind of statistics that evaluation may use.

    ``batches`` are those of training, for recalibration and for the size and classes of groups.

    Returns:
        accuracy/running and loss/running: as the network is used. For batch-normalizing networks also
        accuracy/recalibrated (averages over training batches taken as wholes, with the final weights),
        accuracy/iid_batches (statistics of shuffled groups of test images, as large as in training) and
        accuracy/grouped_batches (of 2 classes a group, or as many as in training).
    """
    logits, labels = predictions(network, images, batches.preprocess)
    metrics = {
        "accuracy/running": accuracy(logits, labels),
        "loss/running": float(functional.cross_entropy(logits, labels)),
    }
    if not any(True for _ in grouped_layers(network)):
        return metrics
    size, classes = batches.partition.size, batches.partition.classes or 2
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(len(images.labels))
    metrics["accuracy/iid_batches"] = by_batch(network, images, batches, shuffled, min(size, len(shuffled)))
    each = min(size // classes, int(np.bincount(images.labels).min()))
    grouped = class_groups(images.labels, classes, each, rng)
    metrics["accuracy/grouped_batches"] = by_batch(network, images, batches, grouped, classes * each)
    plain = revert_to_batch_norm(ungroup_normalization(deepcopy(network)))
    calibrate(plain, batches, min(_CALIBRATION, len(batches.sampler)))
    metrics["accuracy/recalibrated"] = accuracy(*predictions(plain, images, batches.preprocess))
    return metrics


def class_groups(
    labels: NDArray[np.int64], classes: int, each: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Items in groups of ``classes`` classes × ``each`` images, group after group, without a remainder."""
    order = rng.permutation(len(labels))
    chunks = []
    for label in rng.permutation(int(labels.max()) + 1):
        own = order[labels[order] == label]
        chunks.append(own[: len(own) // each * each].reshape(-1, each))
    # The k-th chunks of all classes, then the next ones: neighbours are then of different classes.
    rounds = [np.stack([c[k] for c in chunks if k < len(c)]) for k in range(max(map(len, chunks)))]
    return np.concatenate([r[: len(r) // classes * classes].ravel() for r in rounds])


@torch.no_grad()
def by_batch(
    network: nn.Module, images: Images, batches: GradientBatches, items: NDArray[np.int64], size: int
) -> float:
    """Accuracy when each ``size`` consecutive items are normalized by their own statistics.

    A remainder is dropped.
    """
    tested = group_normalization(ungroup_normalization(deepcopy(network)), 1).eval()
    layers = list(grouped_layers(tested))
    whole = items[: len(items) // size * size].reshape(-1, size)
    right = 0.0
    for groups in np.array_split(whole, -(-whole.size // _BATCH)):
        for layer in layers:
            layer.groups, layer.by_batch = len(groups), True
        chosen = groups.T.ravel()
        pixels = batches.preprocess.normalize(images.take(chosen))
        logits = tested(pixels.to(batches.device)).cpu()
        right += accuracy(logits, torch.from_numpy(images.labels[chosen])) * len(chosen)
    return right / whole.size


@torch.no_grad()
def calibrate(network: nn.Module, batches: GradientBatches, count: int) -> None:
    """Set BatchNorm's running statistics to the mean over the first ``count`` batches.

    Each pass is normalized as a whole; consecutive groups, which are small, are joined to one pass. The
    network, with plain BatchNorm layers, is left in evaluation mode.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    for step in range(count):
        parts = [batch.images for batch in batches[step]]
        for images in [torch.cat(parts)] if batches.consecutive else parts:
            network(images)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    network.eval()
