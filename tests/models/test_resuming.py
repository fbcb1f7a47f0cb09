"""Schedulers and optimizers after resuming, under the same settings and under others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from models import resuming
from models.errors import InputError
from models.schedules import WarmupCosine

Make = Callable[[Optimizer], Any]

SCHEDULERS: dict[str, Callable[[int], Make]] = {
    "WarmupCosine": lambda n: lambda o: WarmupCosine(o, total_steps=20 + n),
    "StepLR": lambda n: lambda o: lr_scheduler.StepLR(o, step_size=2 + n, gamma=0.5),
    "MultiStepLR": lambda n: lambda o: lr_scheduler.MultiStepLR(o, [3, 5 + n], gamma=0.3),
    "ExponentialLR": lambda n: lambda o: lr_scheduler.ExponentialLR(o, 0.9 - n / 100),
    "LambdaLR": lambda n: lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + n + step)),
    "MultiplicativeLR": lambda n: (
        lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9 - n * step / 100)
    ),
    "LinearLR": lambda n: lambda o: lr_scheduler.LinearLR(o, total_iters=4 + n),
    "PolynomialLR": lambda n: lambda o: lr_scheduler.PolynomialLR(o, total_iters=9 + n),
    "CosineAnnealingLR": lambda n: lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=9 + n),
    "WarmRestarts": lambda n: lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3 + n, 2),
    "OneCycleLR": lambda n: lambda o: lr_scheduler.OneCycleLR(o, 0.1 * (1 + n), total_steps=40 + n),
    "CyclicLR": lambda n: (
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1 * (1 + n), step_size_up=3, cycle_momentum=False)
    ),
    "ChainedScheduler": lambda n: (
        lambda o: lr_scheduler.ChainedScheduler(
            [lr_scheduler.ExponentialLR(o, 0.9 - n / 100), lr_scheduler.ConstantLR(o, 0.5, 4)]
        )
    ),
}


class Run:
    """A little module with its optimizer and scheduler, in place of a LightningModule's."""

    def __init__(
        self,
        make_scheduler: Make,
        lr: float = 0.1,
        make_optimizer: Callable[..., Optimizer] = torch.optim.AdamW,
        trained: tuple[int, ...] = (0, 1, 2),
        **values: Any,
    ) -> None:
        torch.manual_seed(0)
        self.module: Any = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(3)))
        parameters = [self.module[number].weight for number in trained]
        self.optimizer = make_optimizer(parameters, lr=lr, **values)
        self.scheduler = make_scheduler(self.optimizer)

    def describe(self, interval: str = "step", monitor: str | None = None) -> dict[str, Any]:
        return resuming.description(self.module, self.optimizer, self.scheduler, interval, monitor)

    def train(self, steps: int) -> "Run":
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.module(torch.ones(2, 3)).square().sum().backward()
            self.optimizer.step()
            if isinstance(self.scheduler, LRScheduler) and not isinstance(self.scheduler, ReduceLROnPlateau):
                self.scheduler.step()
        return self

    def checkpoint(self, step: int, **described: Any) -> dict[str, Any]:
        epochs = {"epoch_progress": {"current": {"processed": step // 5}}}
        return {
            "global_step": step,
            "loops": {"fit_loop": epochs},
            "optimizer_states": [self.optimizer.state_dict()],
            "lr_schedulers": [self.scheduler.state_dict()],
            resuming.KEY: self.describe(**described),
        }

    def resume(self, checkpoint: dict[str, Any], **described: Any) -> "Run":
        resuming.go_on(self.optimizer, self.scheduler, self.describe(**described), checkpoint)
        self.optimizer.load_state_dict(checkpoint["optimizer_states"][0])
        assert checkpoint["lr_schedulers"] == []  # Lightning restores none over this one
        return self

    @property
    def rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]


@given(
    before=st.tuples(st.sampled_from(sorted(SCHEDULERS)), st.integers(0, 5), st.floats(1e-4, 1.0)),
    now=st.tuples(st.sampled_from(sorted(SCHEDULERS)), st.integers(0, 5), st.floats(1e-4, 1.0)),
    steps=st.integers(0, 15),
    more=st.integers(0, 3),
)
@settings(deadline=None)
def test_the_learning_rate_is_that_of_a_run_under_the_present_settings(
    before: tuple[str, int, float], now: tuple[str, int, float], steps: int, more: int
) -> None:
    """Whatever the settings were before, and exactly: the same scheduler's state included."""
    (old, old_value, old_rate), (new, new_value, new_rate) = before, now
    checkpoint = Run(SCHEDULERS[old](old_value), old_rate).train(steps).checkpoint(steps)
    whole = Run(SCHEDULERS[new](new_value), new_rate).train(steps + more)
    resumed = Run(SCHEDULERS[new](new_value), new_rate).resume(checkpoint).train(more)
    assert resumed.rates == whole.rates
    if new != "LambdaLR":
        assert resumed.scheduler.state_dict().keys() == whole.scheduler.state_dict().keys()
    assert resumed.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


def test_another_interval_begins_at_the_present_epoch_or_step() -> None:
    by_step = Run(SCHEDULERS["StepLR"](0)).train(10).checkpoint(10, interval="step")
    resumed = Run(SCHEDULERS["StepLR"](0)).resume(by_step, interval="epoch")
    assert resumed.scheduler.last_epoch == 2
    by_epoch = Run(SCHEDULERS["StepLR"](0)).train(2).checkpoint(10, interval="epoch")
    assert Run(SCHEDULERS["StepLR"](0)).resume(by_epoch, interval="step").scheduler.last_epoch == 10


def test_a_schedule_that_is_over_is_refused() -> None:
    checkpoint = Run(SCHEDULERS["WarmupCosine"](0)).train(15).checkpoint(15)
    short = Run(lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10))
    with pytest.raises(InputError, match="does not reach step 15"):
        short.resume(checkpoint)


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0.025), (4.0, 0.1), (0.0, 0.0)])
def test_what_a_plateau_has_seen_goes_on(factor: float, expected: float) -> None:
    def make(optimizer: Optimizer) -> ReduceLROnPlateau:
        scheduler = ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=0)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return scheduler

    run = Run(make, 0.1)
    for figure in (0.5, 0.4, 0.3):
        run.scheduler.step(figure)
    checkpoint = run.checkpoint(15, interval="epoch", monitor="val/map@r")
    resumed = Run(make, 0.1 * factor).resume(checkpoint, interval="epoch", monitor="val/map@r")
    assert resumed.rates == pytest.approx([expected])
    assert resumed.scheduler.best == 0.5
    checkpoint = run.checkpoint(15, interval="epoch", monitor="val/map@r")
    anew = Run(make, 0.1).resume(checkpoint, interval="epoch", monitor="val/recall@1")
    assert anew.rates == [0.1]
    assert anew.scheduler.best == -float("inf")


OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.AdamW, {}),
    (torch.optim.AdamW, {"amsgrad": True}),
    (torch.optim.Adam, {"betas": (0.5, 0.9)}),
    (torch.optim.Adamax, {}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.Adagrad, {}),
    (torch.optim.RMSprop, {}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"momentum": 0.9}),
]


@given(
    before=st.sampled_from(OPTIMIZERS),
    now=st.sampled_from(OPTIMIZERS),
    trained=st.tuples(*[st.sampled_from([(0, 1, 2), (0, 1), (1, 2), (2,)])] * 2),
)
@settings(deadline=None)
def test_any_optimizer_goes_on_from_any_other(before: Any, now: Any, trained: Any) -> None:
    """Under its own settings; moments of parameters that trained before stay where the optimizer has them."""
    schedule = SCHEDULERS["StepLR"](0)
    (old, old_values), (new, new_values) = before, now
    checkpoint = Run(schedule, 0.1, old, trained[0], **old_values).train(4).checkpoint(4)
    resumed = Run(schedule, 0.05, new, trained[1], **new_values)
    fresh = {k: v for k, v in resumed.optimizer.param_groups[0].items() if k not in ("params", "lr")}
    resumed.resume(checkpoint)
    found = resumed.optimizer.param_groups[0]
    assert {key: found[key] for key in fresh} == fresh
    resumed.train(2)
    if before == now and new is not torch.optim.SGD:
        counts = [int(resumed.optimizer.state[p]["step"]) for p in found["params"]]
        assert counts == [6 if number in trained[0] else 2 for number in trained[1]]


def test_adam_and_adamw_share_their_moments() -> None:
    schedule = SCHEDULERS["StepLR"](0)
    checkpoint = Run(schedule, 0.1, torch.optim.Adam).train(4).checkpoint(4)
    resumed = Run(schedule, 0.1, torch.optim.AdamW).resume(checkpoint)
    assert {int(state["step"]) for state in resumed.optimizer.state.values()} == {4}
