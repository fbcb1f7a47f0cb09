"""Training steps with glibc's own handling of freed memory, and with `app.memory.keep_freed_memory`.

Each run is a process of its own, A B A B …; prints, as JSON, milliseconds a step (medians), the median of the
pairs' ratios and the peak resident memory of both. Another allocator (jemalloc, tcmalloc), preloaded with
LD_PRELOAD, is what a user would pick instead: give its library by --preload.

    PYTHONPATH=. python tests/benchmarks/bench_memory.py [--steps N] [--rounds N] [--preload libjemalloc.so.2]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import torch

from app.memory import keep_freed_memory
from models.network import Architecture, EmbeddingNetwork


def steps(count: int, *, keep: bool) -> dict[str, float]:
    """A Conv-4 of Omniglot's widths, with four pools, on 128 images of 48 px."""
    if keep and not keep_freed_memory():
        raise SystemExit("memory is not kept here: no glibc, or the environment chooses otherwise")
    torch.manual_seed(0)
    backbone = {"width": [32, 64, 128, 256], "pooling": "flatten", "image_size": 48, "pool_before_norm": True}
    network = EmbeddingNetwork(Architecture(backbone="conv4", backbone_args=backbone, in_channels=1))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    images = torch.randn(128, 1, 48, 48)
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"milliseconds": 1000 * statistics.median(seconds[2:]), "peak_mebibytes": peak}


def in_a_process(count: int, *, keep: bool, preload: str | None = None) -> dict[str, float]:
    command = [sys.executable, __file__, "--steps", str(count), "--worker", *(["--keep"] if keep else [])]
    environment = os.environ | ({"LD_PRELOAD": preload} if preload else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preload")
    parser.add_argument("--worker", action="store_true")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(steps(options.steps, keep=options.keep)))
        return
    rounds = []
    for _ in range(options.rounds):
        row = {
            "glibc": in_a_process(options.steps, keep=False),
            "kept": in_a_process(options.steps, keep=True),
        }
        if options.preload:
            row["preloaded"] = in_a_process(options.steps, keep=False, preload=options.preload)
        rounds.append(row)
    report = {}
    for name in rounds[0]:
        report[name] = {
            key: round(statistics.median(row[name][key] for row in rounds), 1)
            for key in ("milliseconds", "peak_mebibytes")
        }
        ratios = [row[name]["milliseconds"] / row["glibc"]["milliseconds"] for row in rounds]
        report[name]["ratio"] = round(statistics.median(ratios), 3)
    print(json.dumps({"threads": torch.get_num_threads(), "rounds": options.rounds, **report}, indent=1))


if __name__ == "__main__":
    main()
