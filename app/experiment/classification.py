"""One run of classification: the gradient batch is fixed, and only the normalization is the variant's."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from app.experiment.batches import Batch, GradientBatches, partition_of
from app.experiment.images import Images, load_images
from app.experiment.networks import build_classifier
from app.experiment.settings import Setting
from app.experiment.testing import accuracy, predictions, test_metrics
from app.experiment.training import Progress, rounded, train

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
