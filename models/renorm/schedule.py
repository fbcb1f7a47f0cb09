"""How rmax, dmax and the momentum change over a run, as data."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from .autograd import GradientAverages
from .layer import BatchRenorm

Shape = Literal["linear", "cosine", "step"]
Unit = Literal["fraction", "steps"]
_SAVED = ("moments", "batches")  # of a layer's GradientAverages


@dataclass(frozen=True)
class Ramp:
    """A value that goes from one to another.

    Attributes:
        start: the value until ``begin``.
        end: the value from ``finish`` on.
        begin: when it starts to change, in the schedule's unit.
        finish: when it has changed, not before ``begin``.
        shape: "linear", "cosine" (slow at both ends), or "step" (all at once at ``finish``).

    Raises:
        ValueError: when it would end before it begins, or on an unknown shape.
    """

    start: float
    end: float
    begin: float
    finish: float
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.finish:
            raise ValueError(f"a ramp from {self.begin} to {self.finish}: give 0 <= begin <= finish")
        if self.shape not in ("linear", "cosine", "step"):
            raise ValueError(f'a ramp\'s shape is "linear", "cosine" or "step", not {self.shape!r}')

    def at(self, time: float) -> float:
        """The value at a time in the schedule's unit."""
        if time >= self.finish:
            return self.end
        if time <= self.begin or self.shape == "step":
            return self.start
        done = (time - self.begin) / (self.finish - self.begin)
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done


# Ioffe's run: batch normalization for 5k steps, rmax 3 at 40k, dmax 5 at 25k, of about 130k.
PAPER_RMAX = Ramp(1.0, 3.0, begin=5 / 130, finish=40 / 130)
PAPER_DMAX = Ramp(0.0, 5.0, begin=5 / 130, finish=25 / 130)


def falling_momentum(total_steps: float, unit: Unit = "fraction") -> Ramp:
    """From 0.1 to the paper's 0.01 over the first 500 steps, or the first half of a run shorter than 1,000.

    Averages with a weight of 0.01 lag by 100 steps: too long for a short run and for the start of any run.
    The length of the run may be infinite, for unknown, if ``unit`` is "steps".
    """
    finish = min(500.0, total_steps / 2)
    return Ramp(0.1, 0.01, begin=0, finish=finish / total_steps if unit == "fraction" else finish)


def narrowed_rmax(total_steps: float) -> Ramp:
    """The paper's ramp in fractions of the run, to its 3 in up to 1,000 steps and to 1.5 in 2,000 and more.

    In long runs on class-grouped minibatches r stays at its limits in a few channels, and the run learns less
    than with a narrower limit; short runs gain nothing from one (docs/evidence.md, "The schedule"). A run of
    unknown length has infinitely many steps.
    """
    length = min(max((total_steps - 1000) / 1000, 0.0), 1.0)
    return replace(PAPER_RMAX, end=PAPER_RMAX.end - 1.5 * length)


class RenormSchedule:
    """Drives the limits of every Batch Renormalization layer inside a module.

    While rmax changes, ``gradient_momentum`` falls from 1 to the value that the layer was made with, where
    its gradient statistics are not the batch's.
    Call ``step`` after each optimizer step. The state dictionary resumes the run: it holds the step and the
    layers' moving gradient statistics, which their own state dictionaries leave out to stay BatchNorm's.

    Args:
        module: searched for layers now; one built or converted later is not driven.
        rmax: largest r; the paper's by default.
        dmax: largest absolute d; the paper's by default.
        momentum: weight of a batch in the running statistics; None leaves the layers' own.
        unit: of the ramps' begin and finish: "fraction" of the run, or "steps".
        total_steps: the run's length, needed for fractions.

    Attributes:
        steps: steps taken.

    Raises:
        ValueError: on fractions without a length, limits out of range, or layers with a warm-up of their own.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        rmax: Ramp = PAPER_RMAX,
        dmax: Ramp = PAPER_DMAX,
        momentum: Ramp | None = None,
        unit: Unit = "fraction",
        total_steps: int | None = None,
    ) -> None:
        if unit not in ("fraction", "steps"):
            raise ValueError(f'unit is "fraction" or "steps", not {unit!r}')
        if unit == "fraction" and (total_steps is None or total_steps < 1):
            raise ValueError("a schedule in fractions of the run needs total_steps, at least 1")
        self.layers = {name: m for name, m in module.named_modules() if isinstance(m, BatchRenorm)}
        if own := [name for name, layer in self.layers.items() if layer.warmup_steps is not None]:
            raise ValueError(f"layer {own[0]!r} has warmup_steps of its own: drop them or the schedule")
        self.ramps = {"rmax": rmax, "dmax": dmax} | ({} if momentum is None else {"momentum": momentum})
        self._opened = replace(rmax, start=float(rmax.start == rmax.end), end=1.0)
        self._unit_steps = float(total_steps or 1) if unit == "fraction" else 1.0
        self._set: dict[str, float] = {}
        self.go_to(0)

    def values(self) -> dict[str, float]:
        """rmax, dmax and, if it is scheduled, momentum, as of now."""
        return {name: ramp.at(self.steps / self._unit_steps) for name, ramp in self.ramps.items()}

    def step(self) -> None:
        """Tell the layers that one optimizer step has been taken."""
        self.go_to(self.steps + 1)

    def go_to(self, steps: int) -> None:
        """Tell the layers how many optimizer steps have been taken; nothing is read from the device."""
        self.steps = steps
        values = self.values()
        if changed := {name: value for name, value in values.items() if self._set.get(name) != value}:
            opened = self._opened.at(self.steps / self._unit_steps)
            for layer in self.layers.values():
                final = layer.final_gradient_momentum
                weight = None if final is None else 1 + (final - 1) * opened
                layer.set_limits(**changed, gradient_momentum=weight)
        self._set = values

    def state_dict(self) -> dict[str, Any]:
        """The steps taken and the layers' moving gradient statistics (copies)."""
        copies = {
            name: {key: getattr(averages, key).clone() for key in _SAVED}
            for name, averages in self._moving().items()
        }
        return {"steps": self.steps, "gradient_statistics": copies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; the limits of every layer are set again, whatever they are now.

        Raises:
            ValueError: when the state's layers with moving gradient statistics are not this module's.
        """
        moving, saved = self._moving(), state["gradient_statistics"]
        if odd := sorted(moving.keys() ^ saved.keys()):
            raise ValueError(f"moving gradient statistics on one side only: {', '.join(odd)}")
        if odd := [name for name, values in saved.items() if values.keys() != set(_SAVED)]:
            raise ValueError(
                f"moving gradient statistics of an earlier version: {odd[0]}; train from the start"
            )
        for name, averages in moving.items():
            for key in _SAVED:
                getattr(averages, key).copy_(saved[name][key])
        self._set = {}
        self.go_to(int(state["steps"]))

    def _moving(self) -> dict[str, GradientAverages]:
        found = {name: layer.gradient_averages() for name, layer in self.layers.items()}
        return {name: averages for name, averages in found.items() if averages is not None}
