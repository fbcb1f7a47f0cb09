"""Distributed training runs of several processes: python distributed_worker.py FOLDER PROCESSES...

Each trains five float64 steps on fixed global batches, of which each process takes its part, and writes every
step's loss, gradients and embeddings to FOLDER/PROCESSES/RANK.pt. `test_distributed.py` compares one
process with two and with four.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from models.gathering import gather_rows
from models.module import MetricLearner
from models.normalization import Normalization

STEPS, CLASSES, EACH = 5, 6, 4
# Classes of each process: uneven parts, and each process's classes are its own, as the sampler deals them.
PARTS = {1: (6,), 2: (4, 2), 4: (2, 2, 1, 1)}


class Loss(nn.Module):
    """What the training step computes, for DistributedDataParallel to wrap."""

    def __init__(self, learner: MetricLearner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = self.learner.network(images)
        return self.learner.compute_loss(embeddings, labels)[0], embeddings


def train(
    rank: int, world_size: int, memory_size: int = 0, normalization: Normalization = "sync_renorm"
) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    learner = MetricLearner(
        backbone_args={"width": [4, 4, 8, 8]},
        normalization=normalization,
        normalization_args={"momentum": 0.1},
        in_channels=1,
        embedding_dim=8,
        memory_size=memory_size,
    ).double()
    loss_of: nn.Module = Loss(learner)
    if world_size > 1:
        loss_of = DistributedDataParallel(loss_of)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    records = []
    for _ in range(STEPS):
        labels = torch.randperm(2 * CLASSES, generator=generator)[:CLASSES].repeat_interleave(EACH)
        images = torch.randn(CLASSES * EACH, 1, 16, 16, generator=generator, dtype=torch.float64)
        images += labels.double().view(-1, 1, 1, 1) / 6
        start = EACH * sum(PARTS[world_size][:rank])
        part = slice(start, start + EACH * PARTS[world_size][rank])
        optimizer.zero_grad()
        loss, embeddings = loss_of(images[part], labels[part])
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
        whole = gather_rows(embeddings.detach())
        records.append(
            {"loss": loss.detach(), "embeddings": whole, "labels": gather_rows(labels[part]), **gradients}
        )
        optimizer.step()
    statistics = {name: value for name, value in learner.network.state_dict().items() if "running" in name}
    return [*records, statistics]


def train_all(rank: int, world_size: int) -> dict[str, list[dict[str, Tensor]]]:
    """The run without and with a cross-batch memory, and with each process's own statistics."""
    return {
        "batch": train(rank, world_size),
        "memory": train(rank, world_size, memory_size=60),
        "own statistics": train(rank, world_size, normalization="renorm"),
    }


def run(rank: int, count: int, folder: Path) -> None:
    """One process of ``count``, which meet in ``folder`` and leave their records there."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    torch.save(train_all(rank, count), folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for processes in map(int, sys.argv[2:]):
        folder = Path(sys.argv[1]) / str(processes)
        folder.mkdir()
        # Forked: importing takes longer than training.
        multiprocessing.start_processes(run, (processes, folder), processes, start_method="fork")
