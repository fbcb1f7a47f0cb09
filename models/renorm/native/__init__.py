"""Fused kernels for CPUs, optional: a layer's whole forward pass in one call, its backward pass in another.

Nothing is compiled unasked. ``build()`` compiles once for a machine, and turns the kernels on; so does the
environment variable ``KINDRED_RENORM_NATIVE=1`` when ``models.renorm`` is imported. Layers then take them
for dense float32, float64 and bfloat16 input on a CPU, and everything else as before.
"""

import os

import torch

from .build import compile_library

_state = {"loaded": False, "enabled": False}


def build() -> None:
    """Compile the kernels where that has not been done (about twenty seconds, kept in the user's cache
    folder), load them and turn them on for this process.

    Raises:
        RuntimeError: one line, when there is no compiler or it fails.
    """
    if not _state["loaded"]:
        torch.ops.load_library(str(compile_library()))  # type: ignore[no-untyped-call]
        _state["loaded"] = True
    _state["enabled"] = True


def disable() -> None:
    """Turn the kernels off for this process; ``build()`` turns them on again."""
    _state["enabled"] = False


def enabled() -> bool:
    """Whether layers take the kernels."""
    return _state["enabled"]


if os.environ.get("KINDRED_RENORM_NATIVE") == "1":
    build()

__all__ = ["build", "compile_library", "disable", "enabled"]
