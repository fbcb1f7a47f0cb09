"""Wall time and peak extra memory of exact evaluation, beside pytorch-metric-learning and the bare products.

    python tests/benchmarks/bench_evaluate.py                 # everything, about eight minutes on two cores
    python tests/benchmarks/bench_evaluate.py --only sop      # one shape
    python tests/benchmarks/bench_evaluate.py --scale 0.05    # a smoke test

Every case runs in a process of its own; memory is the process's peak less what it held before the call.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

SHAPES = {  # items, dimensions, classes, queries (None: every item)
    "sop": (60_502, 512, 11_316, None),
    "100k": (100_000, 128, 20_000, None),
    "default": (12_000, 512, 2_200, None),  # as large as the default of pytorch-metric-learning fits here
    "million": (1_000_000, 128, 200_000, 10_000),
}
CASES = {
    "sop": ("kindred", "pml_cheapest", "bare"),
    "100k": ("kindred", "pml_cheapest", "bare"),
    "default": ("kindred", "pml_default"),
    "million": ("kindred_sampled",),
}
NEIGHBOURS = 12
BLOCK = 1024
BUDGET = 2**30


def embeddings(shape: str, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors around class centres, 2 to about 12 items a class."""
    items, dim, classes, _ = SHAPES[shape]
    items, classes = int(items * scale), max(2, int(classes * scale))
    random = torch.Generator().manual_seed(0)
    free = torch.randint(classes, (items - 2 * classes,), generator=random)
    labels = torch.cat([torch.arange(classes).repeat(2), free])
    labels = labels[torch.randperm(items, generator=random)]
    centres = torch.randn(classes, dim, generator=random)
    vectors = torch.randn(items, dim, generator=random)
    for part, codes in zip(vectors.split(65_536), labels.split(65_536), strict=True):
        part.mul_(1.9).add_(centres[codes])
        part.div_(part.norm(dim=1, keepdim=True))
    return vectors, labels


def kindred(vectors: torch.Tensor, labels: torch.Tensor, queries: int | None = None) -> dict[str, float]:
    from models.metrics import retrieval_metrics

    return retrieval_metrics(vectors, labels, max_queries=queries, memory_budget=BUDGET)


def kindred_sampled(vectors: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    return kindred(vectors, labels, 10_000)


def pml(vectors: torch.Tensor, labels: torch.Tensor, k: int | str | None, include: tuple) -> dict[str, float]:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    found = AccuracyCalculator(include=include, k=k, device=torch.device("cpu")).get_accuracy(vectors, labels)
    names = {
        "recall@1": "precision_at_1",
        "map@r": "mean_average_precision_at_r",
        "r_precision": "r_precision",
    }
    return {ours: float(found[theirs]) for ours, theirs in names.items()}


def pml_cheapest(vectors: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """The fewest neighbours that give the same three figures, and nothing else computed."""
    wanted = ("precision_at_1", "mean_average_precision_at_r", "r_precision")
    return pml(vectors, labels, "max_bin_count", wanted)


def pml_default(vectors: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Without arguments but for the clustering scores, which would take longer than all else."""
    wanted = (
        "precision_at_1",
        "mean_average_precision_at_r",
        "r_precision",
        "mean_reciprocal_rank",
        "mean_average_precision",
    )
    return pml(vectors, labels, None, wanted)


def bare(vectors: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """The product and the top-k that the figures need, into one buffer, and nothing else."""
    buffer = torch.empty(BLOCK, len(vectors))
    for part in vectors.split(BLOCK):
        similarity = torch.mm(part, vectors.T, out=buffer[: len(part)])
        similarity.topk(NEIGHBOURS + 1, dim=1)
    return {}


def memory(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def measure(case: str, shape: str, scale: float) -> None:
    """Runs one case in this process and prints its figures as JSON."""
    function: Callable[..., dict[str, float]] = globals()[case]
    vectors, labels = embeddings(shape, scale)
    few = vectors[:3000].clone()
    function(few, torch.arange(len(few)) // 3)  # imports and thread pools
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start = memory("VmRSS"), time.perf_counter()
    found = function(vectors, labels)
    seconds = time.perf_counter() - start
    figures = {"seconds": seconds, "extra_bytes": memory("VmHWM") - before, "metrics": found}
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SHAPES)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--case")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.case:
        measure(arguments.case, arguments.only, arguments.scale)
        return
    results = {
        "command": " ".join(sys.argv),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "threads": torch.get_num_threads(),
        "cases": [],
    }
    for shape in [arguments.only] if arguments.only else SHAPES:
        for case in CASES[shape]:
            command = [
                sys.executable,
                __file__,
                "--case",
                case,
                "--only",
                shape,
                "--scale",
                str(arguments.scale),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{shape:8} {case:16} failed: {done.stderr.strip().splitlines()[-1:]}")
                continue
            figures = json.loads(done.stdout.splitlines()[-1])
            results["cases"].append({"shape": shape, "case": case, **figures})
            shown = "  ".join(
                f"{n} {v:.6f}" for n, v in figures["metrics"].items() if n in ("recall@1", "map@r")
            )
            size = figures["extra_bytes"] / 2**20
            print(f"{shape:8} {case:16} {figures['seconds']:8.2f} s {size:9.0f} MiB  {shown}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
