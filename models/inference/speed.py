"""Speed of several runners, measured by turns so that other load slows all alike; their conditions."""

import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.inference.runner import Runner

Clock = Callable[[], float]
Speeds = dict[str, dict[int, float]]

_PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu")
_WARM_CALLS = 2
_LEAST_ROUNDS = 5


def measure(
    runners: Mapping[str, Runner],
    example: Tensor,
    batches: Sequence[int],
    seconds: float = 0.3,
    clock: Clock = time.perf_counter,
) -> Speeds:
    """Images per second of each runner at each batch size, by the fastest of several calls.

    Smaller batches are the first rows of the example. A runner has so many seconds for each size, and makes
    at least five calls.
    """
    speeds: Speeds = {name: {} for name in runners}
    for size in batches:
        batch = example[:size]
        best = dict.fromkeys(runners, math.inf)
        for runner in runners.values():
            for _ in range(_WARM_CALLS):
                _call(runner, batch)
        rounds, spent = 0, 0.0
        while rounds < _LEAST_ROUNDS or spent < seconds * len(runners):
            for name, runner in runners.items():
                started = clock()
                _call(runner, batch)
                took = clock() - started
                best[name] = min(best[name], took)
                spent += took
            rounds += 1
        for name, took in best.items():
            speeds[name][size] = size / max(took, 1e-9)
    return speeds


def fastest(speeds: Speeds) -> str:
    """The name with the highest geometric mean over the batch sizes, so that each size counts equally."""
    return max(speeds, key=lambda name: math.prod(speeds[name].values()))


def _call(runner: Runner, batch: Tensor) -> None:
    runner(batch)
    if batch.is_cuda:
        torch.cuda.synchronize(batch.device)


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of installed packages; by default of those that run networks."""
    found = {"python": platform.python_version()}
    for name in packages or _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """The processor or GPU, and torch's number of threads, as plain JSON."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": device.type, "processor": name, "threads": torch.get_num_threads()}


def _processor() -> str:
    """Processor model and instruction set, since compiled code may not run on another."""
    details: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            details.setdefault(key.strip(), value.strip())
    except OSError:
        return platform.processor() or platform.machine()
    model = " ".join(details[key] for key in ("model name", "cpu family", "model") if key in details)
    return f"{model or platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
