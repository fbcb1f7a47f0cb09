"""Lightning callback of Batch Renormalization: its schedule and its logs."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from models.errors import InputError
from models.renorm import (
    PAPER_DMAX,
    Ramp,
    RenormSchedule,
    average_statistics_across_ranks,
    falling_momentum,
    narrowed_rmax,
)
from models.renorm.schedule import Unit


class RenormScheduleCallback(Callback):
    """Sets rmax, dmax and momentum of Batch Renormalization layers, and logs the share of clipped channels.

    At the trainer's logging steps it logs ``renorm/rmax``, ``renorm/dmax``, the shares of channels whose r
    and d were clipped over all layers (``renorm/clipped_r``, ``renorm/clipped_d``) and in each layer
    (``renorm/<layer>/clipped_r``, ...). A step never waits for values from the device. With several processes
    the running statistics of layers that are not synchronized are averaged after each step.

    Args:
        rmax: largest r over the run; "narrowed" is ``narrowed_rmax``.
        dmax: largest absolute d over the run; the paper's by default.
        momentum: weight of a batch in the running statistics; "falling" is ``falling_momentum``, None keeps
            the layers' own.
        unit: of the ramps' begin and finish: "fraction" of the run's optimizer steps, or "steps".
        log_layers: whether to log each layer too.
        average_across_ranks: whether to average the statistics of unsynchronized layers over the processes.

    Raises:
        InputError: at the start of training, where fractions are given and the run's length is unknown, a
            limit is out of range, or a layer has a warm-up of its own.
    """

    schedule: RenormSchedule  # from the start of training

    def __init__(
        self,
        rmax: Ramp | Literal["narrowed"] = "narrowed",
        dmax: Ramp = PAPER_DMAX,
        momentum: Ramp | Literal["falling"] | None = "falling",
        unit: Unit = "fraction",
        log_layers: bool = True,
        average_across_ranks: bool = True,
    ) -> None:
        self.rmax: Ramp | Literal["narrowed"] = rmax
        self.dmax = dmax
        self.momentum: Ramp | Literal["falling"] | None = momentum
        self.unit: Unit = unit
        self.log_layers = log_layers
        self.average_across_ranks = average_across_ranks
        self._resumed: Mapping[str, Any] | None = None
        self._monitoring = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers and set them for the current step of the run."""
        total = trainer.estimated_stepping_batches
        if self.unit == "fraction" and total == float("inf"):
            raise InputError(
                "a renorm schedule in fractions needs a run of known length: "
                "set max_steps or max_epochs, or give the schedule in steps"
            )
        try:
            self.schedule = RenormSchedule(
                pl_module,
                rmax=narrowed_rmax(total) if self.rmax == "narrowed" else self.rmax,
                dmax=self.dmax,
                momentum=falling_momentum(total, self.unit) if self.momentum == "falling" else self.momentum,
                unit=self.unit,
                total_steps=None if total == float("inf") else int(total),
            )
        except ValueError as error:
            raise InputError(f"renorm: {error}") from error
        if self._resumed is not None:
            self.schedule.load_state_dict(dict(self._resumed))
            self._resumed = None
        self.schedule.go_to(trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Let the layers record their clipping in steps that will be logged."""
        every = getattr(trainer, "log_every_n_steps", 0)
        wanted = bool(trainer.loggers) and every > 0 and (trainer.global_step + 1) % every == 0
        if wanted != self._monitoring:
            self._monitor(wanted)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log, average over processes, and advance the schedule."""
        if self._monitoring and self.schedule.layers:
            self._log(pl_module)
        if self.average_across_ranks and trainer.world_size > 1:
            average_statistics_across_ranks(pl_module)
        self.schedule.go_to(trainer.global_step)

    def on_train_end(self, *_: Any) -> None:
        """Stop monitoring the layers."""
        self._monitor(False)

    def state_dict(self) -> dict[str, Any]:
        """The schedule's state, with the layers' moving gradient statistics."""
        return self.schedule.state_dict() if hasattr(self, "schedule") else dict(self._resumed or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts, when the layers are known."""
        self._resumed = state_dict or None

    def _monitor(self, wanted: bool) -> None:
        for layer in self.schedule.layers.values():
            layer.monitor = wanted
        self._monitoring = wanted

    def _log(self, pl_module: LightningModule) -> None:
        layers = self.schedule.layers
        values: dict[str, Any] = {f"renorm/{name}": value for name, value in self.schedule.values().items()}
        clipped = {name: layer.clipped.clone() for name, layer in layers.items()}
        channels = [float(layer.num_features) for layer in layers.values()]
        shares = torch.stack(list(clipped.values()))
        weights = torch.tensor(channels).to(shares, non_blocking=True)
        values["renorm/clipped_r"], values["renorm/clipped_d"] = (weights @ shares / weights.sum()).unbind()
        if self.log_layers:
            for name, (r, d) in clipped.items():
                values[f"renorm/{name}/clipped_r"], values[f"renorm/{name}/clipped_d"] = r, d
        pl_module.log_dict(values, on_step=True, on_epoch=False)
