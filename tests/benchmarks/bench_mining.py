"""Time and peak memory of semi-hard mining, beside pytorch-metric-learning's and sentence-transformers'.

The library's miner returns *all* semi-hard triplets of a batch, through a mask of B³ elements; ours returns
FaceNet's one for each anchor-positive pair. sentence-transformers (6.2 and later) mines the same triplets as
ours, by sorting, inside its BatchSemiHardTripletLoss: what is measured of it is that loss, without gradients.
It runs in an environment of its own (``pip install sentence-transformers``). Each measurement runs in a
process of its own, so that peaks do not mix; one that needs more memory than allowed is reported as such.

    python tests/benchmarks/bench_mining.py --sizes 128 512 1800 --out mining.json \\
        [--sentence-transformers-python VENV/bin/python]
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def batch(size: int, per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors (size, 128) in loose classes of `per_class`, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(size) // per_class
    centres = torch.randn(int(labels.max()) + 1, 128, generator=generator)
    embeddings = centres[labels] + 1.5 * torch.randn(size, 128, generator=generator)
    return torch.nn.functional.normalize(embeddings, dim=1), labels


def miner_of(which: str) -> Callable[[torch.Tensor, torch.Tensor], Any]:
    """What is measured; imported here, for each is in one environment alone."""
    if which == "ours":
        from models.mining import SemiHardMiner

        return SemiHardMiner()
    if which == "library":
        from pytorch_metric_learning.miners import TripletMarginMiner

        return TripletMarginMiner(margin=0.2, type_of_triplets="semihard", collect_stats=False)
    from sentence_transformers.sentence_transformer.losses import BatchSemiHardTripletLoss

    loss = BatchSemiHardTripletLoss(model=None, margin=0.2)
    return lambda embeddings, labels: loss.batch_semi_hard_triplet_loss(labels, embeddings)


def measure(
    which: str, size: int, per_class: int, threads: int, memory_gib: float
) -> dict[str, float | None]:
    """Median seconds of a call, and MiB of peak memory above what was in use before the first."""
    torch.set_num_threads(threads)
    miner = miner_of(which)
    warm = batch(64, 4)
    for _ in range(3):
        miner(*warm)
    embeddings, labels = batch(size, per_class)
    limit = int(memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit + _virtual(), resource.RLIM_INFINITY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, found = [], None
    while not seconds or (sum(seconds) < 3 and len(seconds) < 50):
        start = time.perf_counter()
        found = miner(embeddings, labels)
        seconds.append(time.perf_counter() - start)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    triplets = len(found[0]) if isinstance(found, tuple) else None  # a loss tells none
    return {"seconds": sorted(seconds)[len(seconds) // 2], "peak_mib": peak, "triplets": triplets}


def _virtual() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Measure every size in processes of their own, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 512, 1800])
    parser.add_argument("--per-class", type=int, default=40, help="images of a class (FaceNet: about 40)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-gib", type=float, default=6.0, help="what a measurement may take")
    parser.add_argument("--sentence-transformers-python", metavar="FILE", help="python of its environment")
    parser.add_argument("--out", type=Path, default=None, help="JSON file of the results")
    parser.add_argument("--one", nargs=2, metavar=("WHICH", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        which, size = options.one
        print(json.dumps(measure(which, int(size), options.per_class, options.threads, options.memory_gib)))
        return
    pythons = {"ours": sys.executable, "library": sys.executable}
    if options.sentence_transformers_python:
        pythons["sentence-transformers"] = options.sentence_transformers_python
    results = []
    print(f"{'B':>6} {'miner':>21} {'seconds':>10} {'peak MiB':>10} {'triplets':>12}")
    for size in options.sizes:
        for which, python in pythons.items():
            command = [python, __file__, "--one", which, str(size)]
            command += ["--per-class", str(options.per_class), "--threads", str(options.threads)]
            command += ["--memory-gib", str(options.memory_gib)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{size:>6} {which:>21}  needs more than {options.memory_gib} GiB")
                results.append(
                    {"size": size, "miner": which, "failed": done.stderr.strip().splitlines()[-1][:200]}
                )
                continue
            found = json.loads(done.stdout)
            results.append({"size": size, "miner": which, **found})
            figures = f"{found['seconds']:>10.4f} {found['peak_mib']:>10.0f} {found['triplets'] or '':>12}"
            print(f"{size:>6} {which:>21} {figures}")
    if options.out:
        about = {
            "command": " ".join(["python", *sys.argv]),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "threads": options.threads,
            "per_class": options.per_class,
            "seed": 0,
            "results": results,
        }
        options.out.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
