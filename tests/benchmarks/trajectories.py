"""Draws the float32 training trajectories of one process and of two on the same global batches.

Two processes with `sync_renorm` and gathered triplets are the same computation as one, up to rounding;
without them they are another one. Writes OUT/trajectories.json and OUT/trajectories.png.

    PYTHONPATH=. python tests/benchmarks/trajectories.py --out docs/results/trajectories
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from models.metrics import retrieval_metrics
from models.module import MetricLearner

CLASSES, UNSEEN, P, K, SIDE = 64, 32, 16, 4, 28
# Processes, normalization, whether triplets span them, and by what share the first weights are changed.
RUNS = {
    "1 process": (1, "renorm", True, 0.0),
    "2 processes, sync_renorm, gathered triplets": (2, "sync_renorm", True, 0.0),
    "1 process, first weights moved by 1e-7": (1, "renorm", True, 1e-7),
    "2 processes, own statistics, gathered triplets": (2, "renorm", True, 0.0),
    "2 processes, own statistics, own triplets": (2, "renorm", False, 0.0),
}


def draw(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A smooth pattern for each class, moved by up to two pixels and under noise: float32 (B, 1, 28, 28)."""
    patterns = torch.randn(CLASSES + UNSEEN, 1, 7, 7, generator=torch.Generator().manual_seed(7))
    images = nn.functional.interpolate(patterns, size=(SIDE, SIDE), mode="bicubic")[labels]
    moves = torch.randint(-2, 3, (len(labels), 2), generator=generator).tolist()
    moved = torch.stack([image.roll(move, (1, 2)) for image, move in zip(images, moves, strict=True)])
    return moved + 1.5 * torch.randn(moved.shape, generator=generator)


class Loss(nn.Module):
    """What the training step computes, for DistributedDataParallel to wrap."""

    def __init__(self, learner: MetricLearner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.learner.compute_loss(self.learner.network(images), labels)[0]


def train(
    rank: int, world_size: int, normalization: str, gather: bool, nudge: float, steps: int
) -> dict[str, Any]:
    """Loss of every step, all weights every tenth, and recall@1 on unseen classes at the end."""
    torch.manual_seed(0)
    learner = MetricLearner(
        backbone_args={"width": 16},
        normalization=normalization,
        in_channels=1,
        embedding_dim=32,
        gather=gather,
    )
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.mul_(1 + nudge * torch.randn_like(parameter))
    loss_of: nn.Module = Loss(learner)
    if world_size > 1:
        loss_of = DistributedDataParallel(loss_of)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    losses, weights = [], []
    for step in range(steps):
        labels = torch.randperm(CLASSES, generator=generator)[:P].repeat_interleave(K)
        images = draw(labels, generator)
        mine = slice(rank * len(labels) // world_size, (rank + 1) * len(labels) // world_size)
        optimizer.zero_grad()
        loss = loss_of(images[mine], labels[mine])
        loss.backward()
        optimizer.step()
        shown = loss.detach().clone()
        if world_size > 1:
            distributed.all_reduce(shown)
        losses.append(float(shown) / world_size)
        if step % 10 == 0:
            weights.append(torch.cat([p.detach().flatten() for p in learner.parameters()]).clone())
    unseen = torch.arange(CLASSES, CLASSES + UNSEEN).repeat_interleave(20)
    learner.eval()
    with torch.no_grad():
        embedded = learner(draw(unseen, torch.Generator().manual_seed(2)))
    recall = retrieval_metrics(embedded, unseen, (1,))["recall@1"]
    return {"losses": losses, "weights": torch.stack(weights), "recall@1": recall}


def run(name: str, steps: int) -> dict[str, Any]:
    """One run, in processes of its own."""
    world_size = RUNS[name][0]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--steps", str(steps), "--part", name]
        parts = [
            subprocess.Popen([*command, str(rank), folder], env=environment) for rank in range(world_size)
        ]
        codes = [part.wait() for part in parts]
        if any(codes):
            raise RuntimeError(f"{name}: a process failed")
        return torch.load(Path(folder) / "0.pt", weights_only=True)


def work(name: str, rank: int, folder: Path, steps: int) -> None:
    """What one process of a run does."""
    torch.set_num_threads(1)
    world_size, normalization, gather, nudge = RUNS[name]
    if world_size > 1:
        meet = f"file://{folder}/meet"
        distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=world_size)
    torch.save(train(rank, world_size, normalization, gather, nudge, steps), folder / f"{rank}.pt")
    if world_size > 1:
        distributed.destroy_process_group()


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Losses side by side, and how far each run's weights are from the first one's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    styles = [
        ("#888888", 5.0, "-"),
        ("#1f5fbf", 1.4, "-"),
        ("#8a3ffc", 1.1, "-."),
        ("#c25a00", 1.1, "--"),
        ("#2b8a3e", 1.1, ":"),
    ]
    for (name, result), (colour, width, dash) in zip(results.items(), styles, strict=True):
        left.plot(result["losses"], color=colour, linewidth=width, linestyle=dash, label=name)
        if result["weight_distance"][-1]:
            steps = range(0, 10 * len(result["weight_distance"]), 10)
            right.semilogy(steps, result["weight_distance"], color=colour, linestyle=dash, label=name)
    left.set(xlabel="step", ylabel="loss of the global batch", title="Training loss, float32")
    right.set(xlabel="step", ylabel="‖w − w₁‖ / ‖w₁‖", title="Distance of the weights from one process's")
    left.legend(fontsize=8)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run all four, write JSON and the drawing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("trajectories"))
    parser.add_argument("--part", nargs=3, metavar=("RUN", "RANK", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, rank, folder = options.part
        work(name, int(rank), Path(folder), options.steps)
        return
    found = {name: run(name, options.steps) for name in RUNS}
    first = next(iter(found.values()))["weights"]
    results = {}
    for name, result in found.items():
        distance = ((result["weights"] - first).norm(dim=1) / first.norm(dim=1)).tolist()
        results[name] = {
            "losses": result["losses"],
            "weight_distance": distance,
            "recall@1": result["recall@1"],
        }
        figures = (
            f"loss {result['losses'][-1]:.4f}  weights {distance[-1]:.1e}  recall@1 {result['recall@1']:.4f}"
        )
        print(f"{name:48} {figures}")
    options.out.mkdir(parents=True, exist_ok=True)
    about = {
        "command": " ".join(["python", *sys.argv]),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "batch": {"classes": P, "samples": K, "seed": 1},
        "runs": results,
    }
    (options.out / "trajectories.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    plot(results, options.out / "trajectories.png")


if __name__ == "__main__":
    main()
