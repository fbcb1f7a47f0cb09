"""One run of classification: the gradient batch is fixed, and only the normalization is the variant's."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.experiment.batches import Batch, GradientBatches, partition_of
from app.experiment.experiment_config import Setting
from app.experiment.grouped import group_normalization
from app.experiment.loading import Images, load_images
from app.experiment.testing import accuracy, calibrate, predictions, test_metrics
from app.experiment.training import Progress, rounded, train
from models.backbones import build_backbone
from models.backbones.registry import feature_width
from models.normalization import set_normalization

_CURVE_IMAGES = 2000


def run_classification(
    setting: Setting, seed: int, progress: Progress, device: str = "cpu"
) -> dict[str, Any]:
    """Train and test one variant with one seed.

    Args:
        setting: the variant.
        seed: of weights, batches and augmentation.
        progress: told (steps done, steps in all).
        device: to train on.

    Returns:
        Plain JSON values: metrics, curve, split_hash, seconds (of processor time, training alone).
    """
    data = load_images(setting.data)
    batches = GradientBatches(setting, data.train, data.preprocess, seed, partition_of(setting), device)
    network = build_classifier(setting, batches, data.classes, seed)
    few = _sample(data.val, _CURVE_IMAGES)

    def measure(network: nn.Module) -> dict[str, float]:
        return {"accuracy": accuracy(*predictions(network, few, data.preprocess))}

    trained = train(setting, network, batches, classify, measure, progress)
    return {
        "metrics": rounded(test_metrics(trained.network, data.val, batches) | trained.watched),
        "curve": [rounded(point) for point in trained.curve],
        "split_hash": data.split_hash,
        "seconds": round(trained.seconds, 1),
    }


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


def _sample(images: Images, count: int) -> Images:
    """Every n-th image, ``count`` or a few more of them."""
    return images.subset(np.arange(0, len(images.labels), max(1, len(images.labels) // count)))
