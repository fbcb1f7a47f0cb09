"""Speed measurements of several runners, interleaved so that other load slows all of them alike."""

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from models.inference.runner import Runner

Clock = Callable[[], float]
Speeds = dict[str, dict[int, float]]

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

    Args:
        runners: by name.
        example: a batch of the largest size; smaller ones are its first rows.
        batches: sizes to measure.
        seconds: time for each runner and batch size; slow runners make at least five calls.
        clock: returns seconds.

    Returns:
        Images per second by runner and batch size.
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
