"""One run: a classifier trained with a fixed gradient batch, only its normalization being the arm's.

A plain loop rather than Lightning's: a step takes 50 ms, of which the Trainer's hooks and the data module's
workers would be a good part, and it must hand the layers one batch in interleaved groups.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.experiment.batches import GradientBatches, partition_of
from app.experiment.grouped import grouped_layers
from app.experiment.images import Images, load_images
from app.experiment.networks import build_classifier, schedule_of
from app.experiment.settings import Setting
from app.experiment.testing import accuracy, predictions, test_figures
from models.renorm import BatchRenorm
from models.schedules import WarmupCosine

Progress = Callable[[int, int], None]
_CURVE_IMAGES = 2000


def run_classification(setting: Setting, seed: int, progress: Progress) -> dict[str, Any]:
    """Train and test one arm with one seed.

    Args:
        setting: the arm.
        seed: of weights, batches and augmentation.
        progress: told (steps done, steps in all).

    Returns:
        Plain JSON values: figures, curve, split_hash, seconds (of processor time, training alone).
    """
    data = load_images(setting.data)
    batches = GradientBatches(setting, data.train, data.preprocess, seed, partition_of(setting))
    network = build_classifier(setting, batches, data.classes, seed)
    few = _sample(data.val, _CURVE_IMAGES)
    curve: list[dict[str, float]] = []
    optimizer = make_optimizer(setting, network)
    rate = WarmupCosine(optimizer, warmup=setting.warmup, total_steps=setting.steps)
    schedule = schedule_of(setting, network)
    layers = list(grouped_layers(network))
    marks = {round(setting.steps * (i + 1) / setting.curve_points) for i in range(setting.curve_points)}
    recent: list[tuple[float, float]] = []
    seconds = 0.0
    network.train()
    for step in range(setting.steps):
        begun = time.process_time()
        watched = step + 1 in marks
        _monitor(layers, watched)
        batch = batches[step]
        logits = network(batch.images)
        loss = functional.cross_entropy(logits, batch.labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for layer in layers:
            layer.settle()
        rate.step()
        schedule.step()
        recent = [
            *recent[-(max(1, setting.steps // 20) - 1) :],
            (float(loss.detach()), _right(logits, batch.labels)),
        ]
        seconds += time.process_time() - begun
        if watched:
            reached = accuracy(*predictions(network, few, data.preprocess))
            network.train()
            curve.append({"step": step + 1, "accuracy": reached, **_training(recent), **_clipped(layers)})
        progress(step + 1, setting.steps)
    figures = test_figures(network, data.val, batches) | _training(recent)
    return {
        "figures": {name: round(value, 5) for name, value in figures.items()},
        "curve": [{name: round(value, 4) for name, value in point.items()} for point in curve],
        "split_hash": data.split_hash,
        "seconds": round(seconds, 1),
    }


def make_optimizer(setting: Setting, network: nn.Module) -> torch.optim.Optimizer:
    """Over all parameters that train."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    if setting.optimizer == "rmsprop":
        return torch.optim.RMSprop(
            parameters, setting.learning_rate, alpha=0.9, eps=1.0, weight_decay=setting.weight_decay
        )
    return torch.optim.SGD(parameters, setting.learning_rate, momentum=0.9, weight_decay=setting.weight_decay)


def _sample(images: Images, count: int) -> Images:
    """Every n-th image, ``count`` or a few more of them."""
    step = max(1, len(images.labels) // count)
    return Images(images.pixels[::step], images.labels[::step])


def _right(logits: Tensor, labels: Tensor) -> float:
    return float((logits.detach().argmax(1) == labels).float().mean())


def _training(recent: list[tuple[float, float]]) -> dict[str, float]:
    """Mean loss and accuracy, in training mode, over the latest twentieth of the run."""
    losses, shares = zip(*recent, strict=True)
    return {"loss/training": sum(losses) / len(losses), "accuracy/training": sum(shares) / len(shares)}


def _monitor(layers: list[Any], on: bool) -> None:
    for layer in layers:
        if isinstance(layer.wide, BatchRenorm):
            layer.wide.monitor = on


def _clipped(layers: list[Any]) -> dict[str, float]:
    """Shares of clipped r and d over all layers and groups, in the latest step."""
    shares = [layer.wide.clipped for layer in layers if isinstance(layer.wide, BatchRenorm)]
    if not shares:
        return {}
    r, d = torch.stack(shares).mean(0).tolist()
    return {"clipped/r": r, "clipped/d": d}
