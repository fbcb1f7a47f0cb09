"""Measures the backends in a process of their own, ``python -m serve.measuring``, while the service runs."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING

from models.errors import InputError

if TYPE_CHECKING:
    from serve.settings import Settings

# -P: files in the working folder may have the names of modules.
COMMAND = (sys.executable, "-P", "-m", "serve.measuring")


async def measure_backends(settings: "Settings") -> None:
    """Write the choice for the settings' bundle into the cache of `models.inference`; this takes minutes.

    Cancelling this ends the process.

    Raises:
        InputError: The process failed or was killed.
    """
    arguments = {
        "bundle": str(settings.bundle),
        "device": settings.device,
        "trust_code": settings.trust_code,
        "threads": settings.threads_of_network(),
        "workers": settings.network_workers,
    }
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603  (its arguments are data)
            [*COMMAND, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            # A trusted backbone may lie wherever this process finds modules.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )
        try:
            status = await asyncio.to_thread(process.wait)
        finally:
            if process.stdin is not None:
                process.stdin.close()
        if status:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            reason = f"signal {-status}" if status < 0 else last
            raise InputError(f"the measuring process ended early ({reason})")


def measure(bundle: str, device: str, trust_code: bool, threads: int, workers: int) -> None:
    """Measure in this process, with low priority, until the process that started it ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.nice(10)
    # These imports take seconds: the thread that may end the process comes first.
    import torch

    from models.bundle import Bundle

    torch.set_num_threads(threads)
    Bundle.load(bundle, device, trust_code=trust_code).optimize(workers=workers)


def _end_with_parent() -> None:
    """Kill this process and its compilers when the parent closes its end of standard input, or is gone."""
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    measure(**json.loads(sys.argv[1]))
