"""Paired timing for the benchmarks: A B A B ..., so that a slow spell of the machine hits both."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Paired:
    """Seconds a call (medians over the rounds) and the median of the rounds' ratios."""

    baseline: float
    candidate: float
    ratio: float


def clock(device: str, threads: int) -> Callable[[], float]:
    """Process CPU time for one thread on a CPU, else wall clock; on CUDA after the device has finished."""

    def cuda() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    if device == "cuda":
        return cuda
    return time.process_time if threads == 1 else time.perf_counter


def compare(
    candidate: Work, baseline: Work, now: Callable[[], float], rounds: int = 9, seconds: float = 0.2
) -> Paired:
    """Time two pieces of work in turn, each for about ``seconds`` a round, after warming both up."""

    def a_call(work: Work, calls: int) -> float:
        start = now()
        for _ in range(calls):
            work()
        return (now() - start) / calls

    for work in (baseline, candidate):
        a_call(work, 2)
    calls = [max(1, int(seconds / max(a_call(work, 1), 1e-7))) for work in (baseline, candidate)]
    pairs = [(a_call(baseline, calls[0]), a_call(candidate, calls[1])) for _ in range(rounds)]
    slow, fast = zip(*pairs, strict=True)
    ratio = statistics.median(b / a for a, b in pairs)
    return Paired(statistics.median(slow), statistics.median(fast), ratio)


def peak_memory(work: Work, device: str) -> int:
    """Bytes of tensors alive at once above what is alive before, while the work runs once."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak
