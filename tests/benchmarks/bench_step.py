"""A whole training step with Batch Renormalization against the same network with batch normalization.

    python tests/benchmarks/bench_step.py [--precision bf16] [--out FILE]

Network, semi-hard mining, loss and AdamW of `models.module.MetricLearner` as `kindred fit` runs them on a
CPU: with the fused kernels where there is a compiler, ReLUs and residual sums taken into the layers.
``KINDRED_RENORM_NATIVE=0`` shows how it is without them. Paired (A B A B ...), medians: one thread by
process CPU time, two threads by wall clock.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from bench_renorm import processor  # noqa: E402
from paired import clock, compare  # noqa: E402

from models.module import MetricLearner  # noqa: E402
from models.renorm import native  # noqa: E402

NETWORKS = {"conv4": (128, 32), "resnet10": (64, 64), "resnet18": (32, 112)}
SAMPLES = 4  # images of a class


def train_step(backbone: str, normalization: str, half: bool) -> Callable[[], None]:
    """A step on a batch of noise: what it costs does not depend on what it shows."""
    torch.manual_seed(0)
    batch, size = NETWORKS[backbone]
    learner = MetricLearner(backbone, normalization=normalization).train()
    optimizer = torch.optim.AdamW(learner.parameters(), 1e-3)
    images, labels = torch.randn(batch, 3, size, size), torch.arange(batch) // SAMPLES

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, _ = learner.compute_loss(learner.without_tta(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a round, for each of the two")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    native.try_build()
    rows = []
    for backbone, (batch, size) in NETWORKS.items():
        steps = [train_step(backbone, kind, given.precision == "bf16") for kind in ("renorm", "batch")]
        row: dict[str, object] = {"network": backbone, "batch": batch, "size": size}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            pair = compare(*steps, clock("cpu", threads), given.rounds, given.seconds)
            row |= {f"ratio_{threads}": pair.ratio, f"batch_norm_ms_{threads}": pair.baseline * 1e3}
        print(
            f"{backbone:9} {batch} × {size}²: {row['ratio_1']:.3f}, two threads {row['ratio_2']:.3f}",
            flush=True,
        )
        rows.append(row)
    if given.out is not None:
        record = {
            "command": " ".join(["python", *sys.argv]),
            "processor": processor(),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "kernels": native.enabled(),
            "rows": rows,
        }
        given.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
