"""Resuming a run: what comes from its checkpoint, and what from its settings.

Weights, the optimizer's moments and the position in the run come from the checkpoint. Everything that can be
set (learning rates, other hyperparameters, the schedule and its length) comes from the current settings.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from models.errors import InputError

_log = logging.getLogger(__name__)

# Key of `description` in checkpoints.
KEY = "kindred_training"
# Optimizers that keep the same moments.
_ALIKE = {"torch.optim.adamw.AdamW": "torch.optim.adam.Adam"}
# Settings that determine which moments an optimizer keeps.
_DECIDE_MOMENTS = ("amsgrad", "centered", "momentum")


def description(
    module: LightningModule, optimizer: Optimizer, scheduler: LRScheduler, interval: str, monitor: str | None
) -> dict[str, Any]:
    """What a checkpoint must record of optimizer and scheduler besides their states, as plain JSON values."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        "optimizer": _path(optimizer),
        "parameters": [names.get(id(p)) for group in optimizer.param_groups for p in group["params"]],
        "scheduler": _path(scheduler),
        "interval": interval,
        "monitor": monitor,
    }


def _path(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def check_weights(module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Compare a checkpoint's weights with the module's.

    Raises:
        InputError: one is missing, unexpected or of another shape; the message names settings that differ.
    """
    saved, own = checkpoint["state_dict"], module.state_dict()
    for name in dict.fromkeys([*own, *saved]):
        if name not in saved:
            found = f"it lacks {name}"
        elif name not in own:
            found = f"the model has no {name}"
        elif isinstance(own[name], Tensor) and saved[name].shape != own[name].shape:
            found = f"{name} is {tuple(saved[name].shape)} in it and {tuple(own[name].shape)} in the model"
        else:
            continue
        before, now = checkpoint.get("hyper_parameters", {}), module.hparams
        changed = [
            f"{key} was {before[key]} and is {now[key]}"
            for key in now
            if key in before and before[key] != now[key]
        ]
        raise InputError(
            f"the checkpoint does not fit the model: {found} ({'; '.join(changed) or 'another network'}); "
            "give the settings that it was trained with, or start a new run without a checkpoint"
        )


def check_progress(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Check that training can continue from a checkpoint.

    Raises:
        InputError: it holds weights only, or has trained for longer than the run is to.
    """
    if "optimizer_states" not in checkpoint:
        raise InputError(
            "the checkpoint holds weights alone, and training cannot go on from it: resume from another one"
        )
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    for name, done, limit in (
        ("max_steps", checkpoint["global_step"], trainer.max_steps),
        ("max_epochs", epochs, trainer.max_epochs),
    ):
        if limit is None or limit < 0 or done < limit:
            continue
        if done > limit:
            raise InputError(
                f"trainer.{name} is {limit} and the checkpoint has trained for {done}: raise it, "
                "or start a new run"
            )
        if trainer.is_global_zero:
            _log.warning(
                "the run is finished: its checkpoint has reached trainer.%s %d; raise it to go on",
                name,
                limit,
            )


def go_on(
    optimizer: Optimizer, scheduler: LRScheduler, present: dict[str, Any], checkpoint: dict[str, Any]
) -> None:
    """Step a scheduler to its position in the run, and restore the optimizer's moments.

    The scheduler repeats all its steps under the current settings, so that the learning rate is that of a run
    with these settings. ReduceLROnPlateau's steps depend on metrics and cannot be repeated: its state is
    restored, and the learning rates keep their ratio to the initial ones.

    Args:
        optimizer: new, before any step.
        scheduler: new, of this optimizer.
        present: their `description`.
        checkpoint: Lightning will restore the optimizer from it. Its schedulers are removed, so that
            Lightning does not restore them.

    Raises:
        InputError: the schedule is shorter than the run so far.
    """
    # Older checkpoints have no such entry: assume the same settings.
    saved = checkpoint.get(KEY, present)
    states, checkpoint["lr_schedulers"] = checkpoint["lr_schedulers"], []
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    if isinstance(scheduler, ReduceLROnPlateau):
        same = all(saved[key] == present[key] for key in ("scheduler", "monitor"))
        if same and states[0]["mode"] == scheduler.mode and len(groups) == len(optimizer.param_groups):
            _go_on_with_plateau(optimizer, scheduler, states[0], groups)
        else:
            _log.warning("the learning rates start anew: ReduceLROnPlateau has other settings than before")
    else:
        if present["interval"] == saved["interval"]:
            steps = _steps(states[0])
        elif present["interval"] == "step":
            steps = checkpoint["global_step"]
        else:
            steps = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        with warnings.catch_warnings():
            # The optimizer took its steps before the checkpoint, which torch cannot know.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            try:
                for _ in range(steps):
                    scheduler.step()
            except ValueError as error:
                raise InputError(f"the schedule does not reach step {steps} of the run: {error}") from error

    def keep_moments(fresh: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        groups = fresh.state_dict()["param_groups"]
        kept = {}
        if _same_moments(saved["optimizer"], present["optimizer"], state["param_groups"], groups):
            kept = _by_name(state["state"], saved["parameters"], present["parameters"])
        else:
            _log.warning("the optimizer's moments start anew: it is another than before, or keeps others")
        return {"state": kept, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(keep_moments)


def _steps(state: Mapping[str, Any]) -> int:
    """Number of steps of a scheduler; a chained one only has those of its parts."""
    return int(state["last_epoch"]) if "last_epoch" in state else _steps(state["_schedulers"][0])


def _go_on_with_plateau(
    optimizer: Optimizer,
    scheduler: ReduceLROnPlateau,
    state: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
) -> None:
    for key in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch"):
        setattr(scheduler, key, state[key])
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        if group["lr"] == saved["initial_lr"]:
            group["lr"] = saved["lr"]  # exactly
        else:
            group["lr"] *= saved["lr"] / (saved["initial_lr"] or 1.0)


def _same_moments(
    before: str, now: str, saved: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]
) -> bool:
    return _ALIKE.get(before, before) == _ALIKE.get(now, now) and all(
        bool(saved[0].get(key)) == bool(groups[0].get(key)) for key in _DECIDE_MOMENTS
    )


def _by_name(
    state: Mapping[int, Any], before: Sequence[str | None], now: Sequence[str | None]
) -> dict[int, Any]:
    """The moments of the parameters that trained before and train now."""
    numbers = {name: number for number, name in enumerate(before)}
    return {
        number: state[numbers[name]]
        for number, name in enumerate(now)
        if name in numbers and numbers[name] in state
    }
