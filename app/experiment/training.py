"""The training loop of every run.

It is not Lightning's: a step takes 50 ms, of which the Trainer's hooks and the data module's workers would be
a good part, and the layers need a batch in interleaved groups.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from app.experiment.batches import Batch, GradientBatches
from app.experiment.experiment_config import Setting
from app.experiment.grouped import GroupedNormalization, grouped_layers, wide_layers
from models.network import EmbeddingNetwork
from models.renorm import BatchRenorm, Ramp, RenormAveragedModel, RenormSchedule, native
from models.schedules import WarmupCosine

Progress = Callable[[int, int], None]
# The loss of a batch, and other metrics of it.
Objective = Callable[[nn.Module, Batch], tuple[Tensor, Mapping[str, float]]]
# Metrics on validation images; the first is drawn as a curve.
Measure = Callable[[nn.Module], Mapping[str, float]]


@dataclass
class Trained:
    """Results of training."""

    network: nn.Module  # the network to test: the trained one, or its moving average
    # Points with step, measured and training metrics, and the clipped fractions of r and d.
    curve: list[dict[str, float]] = field(default_factory=list)
    # Means of the training metrics over the latest twentieth of the run.
    watched: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0  # processor time without measuring

    def record(self, metrics: Mapping[str, float], split_hash: str) -> dict[str, Any]:
        """The run as plain JSON values: metrics, curve, split_hash, seconds."""
        return {
            "metrics": _rounded({**metrics, **self.watched}),
            "curve": [_rounded(point) for point in self.curve],
            "split_hash": split_hash,
            "seconds": round(self.seconds, 1),
        }


def train(
    setting: Setting,
    network: nn.Module,
    batches: GradientBatches,
    objective: Objective,
    measure: Measure,
    progress: Progress,
    proxies: Iterable[nn.Parameter] = (),
) -> Trained:
    """Train a network with grouped normalization in place, and the loss's proxies with it.

    ``measure`` is called a few times and may change the network's mode; ``progress`` gets (steps done, all).
    """
    native.try_build()
    average = None
    if setting.average is not None:
        decay = get_ema_multi_avg_fn(setting.average)  # type: ignore[no-untyped-call]
        average = RenormAveragedModel(network, multi_avg_fn=decay, use_buffers=True)
    trained = Trained(network if average is None else average.module)
    optimizer = make_optimizer(setting, network, proxies)
    rate = WarmupCosine(optimizer, warmup=setting.warmup, total_steps=setting.steps)
    ramps: dict[str, Any] = {name: Ramp(**ramp.model_dump()) for name, ramp in setting.ramps.items()}
    schedule = RenormSchedule(wide_layers(network), total_steps=setting.steps, **ramps)
    layers = list(grouped_layers(network))
    marks = {round(setting.steps * (i + 1) / setting.curve_points) for i in range(setting.curve_points)}
    recent: list[dict[str, float]] = []
    network.train()
    for step in range(setting.steps):
        begun = time.process_time()
        _monitor(layers, step + 1 in marks)
        optimizer.zero_grad()
        seen = [_one_pass(network, batch, objective, layers, setting) for batch in batches[step]]
        optimizer.step()
        for layer in layers:
            layer.settle()
        rate.step()
        schedule.step()
        if average is not None:
            average.update_parameters(network)
        kept = max(1, setting.steps // 20) - 1
        recent = [*recent[len(recent) - kept :], _mean(seen)]
        trained.seconds += time.process_time() - begun
        if step + 1 in marks:
            trained.watched = _mean(recent)
            reached = measure(trained.network)
            trained.curve.append({"step": step + 1, **reached, **trained.watched, **_clipped(layers)})
            network.train()
        progress(step + 1, setting.steps)
    return trained


def _one_pass(
    network: nn.Module,
    batch: Batch,
    objective: Objective,
    layers: list[GroupedNormalization],
    setting: Setting,
) -> dict[str, float]:
    for layer in layers:
        layer.restart()
    mixed = setting.precision == "bf16-mixed"
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=mixed):
        loss, watched = objective(network, batch)
    (loss / setting.passes).backward()  # type: ignore[no-untyped-call]
    for layer in layers:
        layer.collect()
    return {"loss/training": float(loss.detach()), **watched}


def _mean(points: list[dict[str, float]]) -> dict[str, float]:
    return {key: sum(point[key] for point in points) / len(points) for key in points[-1]}


def make_optimizer(
    setting: Setting, network: nn.Module, proxies: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """An optimizer of all trainable parameters, including a loss's proxies."""
    parameters: list[Any] = [p for p in network.parameters() if p.requires_grad]
    if isinstance(network, EmbeddingNetwork):
        head: dict[str, Any] = {"params": [*network.head.parameters(), *proxies]}
        if setting.head_learning_rate is not None:
            head["lr"] = setting.head_learning_rate
        parameters = [{"params": [p for p in network.backbone.parameters() if p.requires_grad]}, head]
    if setting.optimizer == "adamw":
        return torch.optim.AdamW(parameters, setting.learning_rate, weight_decay=setting.weight_decay)
    if setting.optimizer == "rmsprop":
        return torch.optim.RMSprop(
            parameters, setting.learning_rate, alpha=0.9, eps=1.0, weight_decay=setting.weight_decay
        )
    return torch.optim.SGD(
        parameters,
        setting.learning_rate,
        momentum=0.9,
        weight_decay=setting.weight_decay,
        nesterov=setting.nesterov,
    )


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in values.items()}


def _monitor(layers: list[GroupedNormalization], on: bool) -> None:
    for layer in layers:
        if isinstance(layer.wide, BatchRenorm):
            layer.wide.monitor = on


def _clipped(layers: list[GroupedNormalization]) -> dict[str, float]:
    """Clipped fractions of r and d over all layers and groups, in the latest step."""
    fractions = [layer.wide.clipped for layer in layers if isinstance(layer.wide, BatchRenorm)]
    if not fractions:
        return {}
    r, d = torch.stack(fractions).mean(0).tolist()
    return {"clipped/r": r, "clipped/d": d}
