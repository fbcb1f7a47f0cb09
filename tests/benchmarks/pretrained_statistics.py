"""What new batch statistics do to a pretrained backbone before any training.

    PYTHONPATH=. python tests/benchmarks/pretrained_statistics.py finetune_grocery finetune_grocery:112 \
        finetune_faces finetune_omniglot --save

Each name is an experiment's, with another image size behind the colon. The backbone goes over batches of
training classes in training mode, without gradient or augmentation. Its running statistics become the average
over them, as a whole or in part, and recall@1 and MAP@R of its features are measured on classes held out.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.experiment.classification import predictions
from app.experiment.experiment_config import load_experiment
from app.experiment.loading import Images, load_images
from app.memory import keep_freed_memory
from models.metrics import retrieval_metrics
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess

ROOT = Path(__file__).parents[2]
# For each layer: mean and deviation (with epsilon in it), (C,) each.
Statistics = dict[str, tuple[Tensor, Tensor]]


class Features(nn.Module):
    """A backbone's features, of length 1.

    Args:
        network: with plain BatchNorm layers.
    """

    def __init__(self, network: EmbeddingNetwork) -> None:
        super().__init__()
        self.network = network
        self.norms = {n: m for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → (B, features)."""
        return nn.functional.normalize(self.network.features(images))

    def statistics(self) -> Statistics:
        """The running statistics."""
        return {n: (m.running_mean.clone(), (m.running_var + m.eps).sqrt()) for n, m in self.norms.items()}

    def set_statistics(self, wanted: Statistics) -> None:
        """Replace the running statistics."""
        for name, (mean, deviation) in wanted.items():
            self.norms[name].running_mean.copy_(mean)
            self.norms[name].running_var.copy_(deviation.square() - self.norms[name].eps)

    @torch.no_grad()
    def estimate(self, batches: Iterator[Tensor]) -> Statistics:
        """The average over batches that go through in training mode."""
        for norm in self.norms.values():
            norm.reset_running_stats()
            norm.momentum = None
        self.train()
        for batch in batches:
            self(batch)
        return self.statistics()


def variants(old: Statistics, new: Statistics) -> Iterator[tuple[str, Statistics]]:
    """What may be taken over of the new statistics, by name."""
    both = {name: (*old[name], *new[name]) for name in old}
    factor = {name: (n / o).log().mean().exp() for name, (_, o, _, n) in both.items()}
    yield "mean and deviation", new
    yield "the mean alone", {k: (m, o) for k, (_, o, m, _) in both.items()}
    yield "the deviation alone", {k: (m, n) for k, (m, _, _, n) in both.items()}
    yield (
        "the deviation alone, none below the pretrained",
        {k: (m, torch.maximum(o, n)) for k, (m, o, _, n) in both.items()},
    )
    yield "of the deviation: one factor a layer", {k: (m, o * factor[k]) for k, (m, o, _, _) in both.items()}
    yield "of the deviation: the rest", {k: (m, n / factor[k]) for k, (m, _, _, n) in both.items()}


def batches(
    images: Images, preprocess: Preprocess, classes: int | None, each: int, count: int
) -> Iterator[Tensor]:
    """Batches of so many classes × images, or of any images where ``classes`` is None."""
    rng = np.random.default_rng(0)
    of_class: list[NDArray[np.int64]] = [
        np.flatnonzero(images.labels == c) for c in range(images.labels.max() + 1)
    ]
    for _ in range(count):
        if classes is None:
            rows = rng.choice(len(images.labels), each, replace=False)
        else:
            chosen = rng.choice(len(of_class), classes, replace=False)
            rows = np.concatenate([rng.choice(of_class[c], each, replace=False) for c in chosen])
        yield preprocess.normalize(images.take(rows)).to(memory_format=torch.channels_last)


def measure(name: str, size: int | None) -> dict[str, str]:
    """One column of the table."""
    setting = load_experiment(ROOT / "configs" / "experiment" / f"{name}.yaml").setting("frozen")
    data = load_images(setting.data if size is None else setting.data.model_copy(update={"image_size": size}))
    architecture = Architecture(setting.backbone, normalization="batch", in_channels=data.preprocess.channels)
    features = Features(EmbeddingNetwork(architecture, "packaged"))

    def figure() -> str:
        embeddings, labels = predictions(features, data.val, data.preprocess)
        found = retrieval_metrics(embeddings, labels.numpy(), (1,))
        return f"{found['recall@1']:.3f} / {found['map@r']:.3f}"

    old = features.statistics()
    column = {"the pretrained statistics": figure()}
    drawn = {"80 batches of 2 × 4": (2, 4, 80), "5 batches of 256 of any class": (None, 256, 5)}
    for title, (classes, each, count) in drawn.items():
        features.set_statistics(old)
        new = features.estimate(batches(data.train, data.preprocess, classes, each, count))
        for part, wanted in variants(old, new):
            features.set_statistics(wanted)
            column[f"{title}: {part}"] = figure()
    ratio = torch.cat([new[k][1] / old[k][1] for k in old])
    low, middle, high = (float(v) for v in torch.quantile(ratio, torch.tensor([0.05, 0.5, 0.95])))
    column["new deviation over the pretrained: 5%, median, 95% of channels"] = (
        f"{low:.2f}, {middle:.2f}, {high:.2f}"
    )
    return column


def main() -> None:
    """Print the table; with --save also write it to docs/results/pretrained_statistics/table.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+", help="experiments, each NAME or NAME:SIZE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    keep_freed_memory()
    columns = {}
    for name in asked.names:
        experiment, _, size = name.partition(":")
        columns[name] = measure(experiment, int(size) if size else None)
        print(name, columns[name], flush=True)
    command = f"python tests/benchmarks/pretrained_statistics.py {' '.join(asked.names)} --save"
    lines = [
        "# Pretrained statistics",
        "",
        f"`{command}` made this file: recall@1 / MAP@R of the backbone's features.",
        "",
        "| running statistics | " + " | ".join(columns) + " |",
        "|" + " --- |" * (len(columns) + 1),
    ]
    lines += [
        f"| {row} | " + " | ".join(column[row] for column in columns.values()) + " |"
        for row in next(iter(columns.values()))
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if asked.save:
        path = ROOT / "docs" / "results" / "pretrained_statistics" / "table.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
