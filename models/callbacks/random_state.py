"""Random states in checkpoints, so that dropout and random miners resume exactly."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback

from models.errors import InputError


class RandomState(Callback):
    """Keeps the states of Python's, numpy's and torch's generators (CPU and CUDA) in checkpoints.

    They are restored just before the first training batch, after everything that draws numbers during the
    start of a resumed run.
    """

    def __init__(self) -> None:
        self._found: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states as plain numbers and tensors, which load without running code."""
        name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the global generator is the subject
        return {
            "python": random.getstate(),
            "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until the first training batch."""
        self._found = state_dict

    def on_train_batch_start(self, *_: Any) -> None:
        """Restore the states, once.

        Raises:
            InputError: they are damaged.
        """
        if self._found is None:
            return
        found, self._found = self._found, None
        try:
            random.setstate(found["python"])
            name, keys, *rest = found["numpy"]
            np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
            torch.set_rng_state(found["torch"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the checkpoint's random states are damaged ({error}); resume an older one"
            ) from error
        if torch.cuda.is_available() and len(found["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(found["cuda"])
