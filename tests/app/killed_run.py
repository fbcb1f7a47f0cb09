"""A training run that ends itself with SIGKILL: python tests/app/killed_run.py STEP fit --config …"""

import os
import signal
import sys
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


if __name__ == "__main__":
    run_training(sys.argv[2:], [Kill(int(sys.argv[1]))])
