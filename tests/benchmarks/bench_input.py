"""How fast batches are chosen and made.

Prints, as JSON: milliseconds a batch of the sampler at 100,000 classes and 10 million images; and the
share of the training step spent waiting for data, for a four-block network at 64 px from JPEG files, in the
first epoch and after it.

    PYTHONPATH=. python tests/benchmarks/bench_input.py [--small] [--workers N] [--out FILE]
"""

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from data.datamodule import ImageDataModule
from data.sampling import PKBatchSampler


def sampler(classes: int, per_class: int, batches: int) -> dict[str, float]:
    labels = np.repeat(np.arange(classes), per_class)
    start = time.perf_counter()
    drawn = PKBatchSampler(labels, 32, 4, batches)
    built = time.perf_counter()
    for _ in drawn:
        pass
    ended = time.perf_counter()
    return {
        "classes": classes,
        "images": len(labels),
        "build_seconds": round(built - start, 3),
        "milliseconds_a_batch": round((ended - built) / batches * 1000, 4),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def write_photographs(root: Path, classes: int, per_class: int, side: int) -> None:
    rng = np.random.default_rng(0)
    for label in range(classes):
        (root / f"{label:04d}").mkdir(parents=True)
        for number in range(per_class):
            coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            photograph = coarse.resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
            photograph.save(root / f"{label:04d}" / f"{number}.jpg", quality=90)


def conv4(channels: int = 64) -> nn.Module:
    blocks: list[nn.Module] = []
    for number in range(4):
        blocks += [
            nn.Conv2d(channels if number else 3, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(channels * 16, 128))


def waiting(root: Path, augmentation: str, workers: int, batches: int, epochs: int) -> dict[str, Any]:
    data = ImageDataModule(
        str(root),
        image_size=64,
        augmentation=augmentation,  # type: ignore[arg-type]
        batches_per_epoch=batches,
        num_workers=workers,
    )
    network = conv4()
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    loader = data.train_dataloader()
    shares, seconds = [], []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        start = time.perf_counter()
        for batch in loader:
            optimizer.zero_grad()
            network(batch["image"]).square().mean().backward()
            optimizer.step()
        seconds.append((time.perf_counter() - start) / batches)
        shares.append(round(loader.wait_share, 4))
    return {
        "augmentation": augmentation,
        "workers": workers,
        "wait_share_first_epoch": shares[0],
        "wait_share_later_epochs": shares[1:],
        "milliseconds_a_step": [round(s * 1000, 1) for s in seconds],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--batches", type=int, default=20, help="steps of an epoch")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    options = parser.parse_args()
    small = options.small
    batches, epochs = (2, 2) if small else (options.batches, options.epochs)
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": platform.platform(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "sampler": sampler(1000 if small else 100_000, 100, 50 if small else 2000),
        "waiting": [],
    }
    print(result["sampler"], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photographs"
        # Few enough images that the first epoch reads each of them.
        write_photographs(root, 48 if small else 100, 5 if small else 10, 80 if small else 512)
        for workers in options.workers:
            for augmentation in ("none", "products"):
                result["waiting"].append(waiting(root, augmentation, workers, batches, epochs))
                print(result["waiting"][-1], flush=True)
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
