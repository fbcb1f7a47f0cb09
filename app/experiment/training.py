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
from models.renorm import (
    PAPER_DMAX,
    PAPER_RMAX,
    BatchRenorm,
    Ramp,
    RenormAveragedModel,
    RenormSchedule,
    native,
)
from models.schedules import WarmupCosine

Progress = Callable[[int, int], None]
# The loss of a batch, and other metrics of it.
Objective = Callable[[nn.Module, Batch], tuple[Tensor, Mapping[str, float]]]
# Metrics on validation images; the first is drawn as a curve.
Measure = Callable[[nn.Module], Mapping[str, float]]


@dataclass
class Trained:
    """Results of training.

    Attributes:
        network: the network to test: the trained one, or its moving average.
        curve: points with step, measured and training metrics, and the clipped fractions of r and d.
        watched: means of the training metrics over the latest twentieth of the run.
        seconds: processor time without measuring.
    """

    network: nn.Module
    curve: list[dict[str, float]] = field(default_factory=list)
    watched: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def train(
    setting: Setting,
    network: nn.Module,
    batches: GradientBatches,
    objective: Objective,
    measure: Measure,
    progress: Progress,
    proxies: Iterable[nn.Parameter] = (),
) -> Trained:
    """Train a network in place.

    Args:
        setting: steps, optimizer, limits of renorm.
        network: with grouped normalization.
        batches: its input.
        objective: what to minimize.
        measure: called a few times during training; it may change the network's mode.
        progress: called with (steps done, all steps).
        proxies: parameters of the loss, which are trained, too.
    """
    native.try_build()
    average = averaged(network, setting.average)
    trained = Trained(network if average is None else average.module)
    optimizer = make_optimizer(setting, network, proxies)
    rate = WarmupCosine(optimizer, warmup=setting.warmup, total_steps=setting.steps)
    schedule = schedule_of(setting, network)
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


def averaged(network: nn.Module, decay: float | None) -> RenormAveragedModel | None:
    """The moving average of weights and running statistics (of deviations), or None without a decay."""
    if decay is None:
        return None
    moving = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return RenormAveragedModel(network, multi_avg_fn=moving, use_buffers=True)


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


def schedule_of(setting: Setting, network: nn.Module) -> RenormSchedule:
    """The limits of the network's renorm layers over the run; without such layers it does nothing."""
    ramps = {name: Ramp(**ramp.model_dump()) for name, ramp in setting.ramps.items()}
    return RenormSchedule(
        wide_layers(network),
        rmax=ramps.get("rmax", PAPER_RMAX),
        dmax=ramps.get("dmax", PAPER_DMAX),
        momentum=ramps.get("momentum"),
        total_steps=setting.steps,
    )


def rounded(values: Mapping[str, Any]) -> dict[str, float]:
    """Metrics rounded to five decimal places, as they are stored."""
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
