"""Fused kernels for CPUs: a layer's whole forward pass in one call, its backward pass in another.

Layers take them for dense float32, float64 and bfloat16 input on a CPU once they are turned on, and torch's
operations for everything else. ``build()`` turns them on, ``try_build()`` where that can be done; Kindred's
training asks for the latter. Importing ``models.renorm`` compiles nothing, unless the environment variable
``KINDRED_RENORM_NATIVE`` is 1; where it is 0, ``try_build()`` leaves them off.
"""

import logging
import os

from .build import compile_library, load_library

_log = logging.getLogger(__name__)
_SWITCH = "KINDRED_RENORM_NATIVE"

# None: nobody has decided yet.
_state: dict[str, bool | None] = {"enabled": None}


def build() -> None:
    """Load the kernels and turn them on for this process; compile them first where that has not been done.

    That takes about twenty seconds, once for a machine: they are kept in the user's cache folder.

    Raises:
        RuntimeError: one line, when there is no compiler or it fails.
    """
    load_library()
    _state["enabled"] = True


def try_build() -> None:
    """``build()`` where nobody has decided yet; says in the log why it could not be done."""
    if _state["enabled"] is not None or os.environ.get(_SWITCH) == "0":
        return
    try:
        build()
    except (RuntimeError, OSError, ImportError) as error:
        _log.warning("Batch Renorm goes without its fused kernels: %s", error)
        disable()


def disable() -> None:
    """Turn the kernels off for this process; ``build()`` turns them on again."""
    _state["enabled"] = False


def enabled() -> bool:
    """Whether layers take the kernels."""
    return _state["enabled"] is True


if os.environ.get(_SWITCH) == "1":
    build()

__all__ = ["build", "compile_library", "disable", "enabled", "try_build"]
