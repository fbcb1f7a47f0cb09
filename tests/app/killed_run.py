"""A training run that ends itself with SIGKILL."""

import os
import signal
from typing import Any

import lightning

from app.fit import run_training


class Kill(lightning.Callback):
    """Kills the process in the middle of a step: gradients are there, the weights are not updated yet."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(arguments: list[str]) -> None:
    """The number of the step, then the arguments of a run."""
    run_training(arguments[1:], [Kill(int(arguments[0]))])
