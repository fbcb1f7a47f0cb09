"""Images a second of ``kindred fit``, beside the same task written with other libraries.

    python tests/benchmarks/bench_fit.py [--network conv4] [--oml-python VENV/bin/python] [--out fit.json]

The task: JPEG files in a folder for each class, drawn by this script; batches of 16 classes × 4 images at
64 px, augmented; semi-hard triplets; AdamW. ``kindred fit`` takes its defaults, with the configs for that
network and for folders. The plain script is what a user writes with Lightning, pytorch-metric-learning and
torchvision's transforms: the same network with batch normalization, the same batches and as many workers.
Open Metric Learning runs in an environment of its own (``pip install open-metric-learning
'pytorch-lightning<2.1.3' timm``), by its own data set, sampler, miner and loss.

Each run is a process of its own; they take turns (A B C A B C ...). A run's figure leaves out its first ten
steps, in which memory is allocated and workers start; ratios are of runs side by side, and their median is
printed.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from models.backbones import build_backbone  # noqa: E402

CLASSES, EACH, SIDE, SKIPPED = 16, 4, 64, 10
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet10": {"width": 32, "stem": "small"},
    "conv4": {"width": [32, 64, 128, 256]},
}
Tick = Callable[[], None]


def write_images(root: Path, images: int, classes: int, side: int) -> None:
    """Photograph-like JPEG files: coarse noise, enlarged."""
    rng = np.random.default_rng(0)
    for number in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        file = root / f"{number % classes:03d}" / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(file, quality=90)


def network(name: str) -> nn.Module:
    """The network of configs/model with its batch normalization, and a head."""
    backbone = build_backbone(name, NETWORKS[name], 3)
    width = backbone(torch.zeros(2, 3, SIDE, SIDE)).shape[1]
    return nn.Sequential(backbone, nn.Linear(width, 128))


def transforms() -> Any:
    """What the preset `products` does, by torchvision's transforms."""
    from torchvision.transforms import Compose, v2

    return Compose(
        [
            v2.RandomResizedCrop(SIDE, scale=(0.3, 1.0), ratio=(0.75, 1.33), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(12),
            v2.ColorJitter(0.2, 0.2, 0.1),
            v2.RandomApply([v2.GaussianBlur(3)], p=0.2),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomErasing(0.25),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )


def timer(tick: Tick) -> Any:
    """A callback that ticks after each training step."""
    from lightning.pytorch import Callback

    class Timer(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            tick()

    return Timer()


def kindred(options: argparse.Namespace, tick: Tick) -> None:
    """``kindred fit`` by its defaults, without validation."""
    from app.fit import run_training

    configs = ROOT / "configs"
    run_training(
        [
            "fit",
            f"--config={configs / 'model' / options.network}.yaml",
            f"--config={configs / 'data' / 'folder.yaml'}",
            f"--data.source={options.images_in}",
            f"--run={options.images_in.parent / f'run-{os.getpid()}'}",
            f"--trainer.max_steps={options.steps}",
            "--trainer.limit_val_batches=0",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            "--compare=false",
        ],
        [timer(tick)],
    )


def plain(options: argparse.Namespace, tick: Tick) -> None:
    """The script that a user of Lightning and pytorch-metric-learning writes."""
    import lightning
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import TripletMarginMiner
    from pytorch_metric_learning.samplers import MPerClassSampler
    from torchvision.datasets import ImageFolder

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(options.network)
            self.miner = TripletMarginMiner(margin=0.2, type_of_triplets="semihard")
            self.loss = TripletMarginLoss(margin=0.2)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            images, labels = batch
            embeddings = nn.functional.normalize(self.network(images))
            loss: Tensor = self.loss(embeddings, labels, self.miner(embeddings, labels))
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 1e-3)

    images = ImageFolder(str(options.images_in), transforms())
    batch = CLASSES * EACH
    loader = torch.utils.data.DataLoader(
        images,
        batch,
        sampler=MPerClassSampler(images.targets, EACH, batch, len(images)),
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        drop_last=True,
    )
    trainer = lightning.Trainer(
        max_steps=options.steps,
        default_root_dir=options.images_in.parent / f"run-{os.getpid()}",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[timer(tick)],
    )
    trainer.fit(Module(), loader)


def oml(options: argparse.Namespace, tick: Tick) -> None:
    """Open Metric Learning, as its README trains; for want of a semi-hard miner with its cheapest one."""
    import pandas as pd
    from oml.datasets import ImageLabeledDataset
    from oml.losses import TripletLossWithMiner
    from oml.miners import HardTripletsMiner
    from oml.samplers import BalanceSampler

    files = sorted(options.images_in.glob("*/*.jpg"))
    table = pd.DataFrame({"path": [str(f) for f in files], "label": [int(f.parent.name) for f in files]})
    images = ImageLabeledDataset(table, transform=transforms())
    sampler = BalanceSampler(images.get_labels(), n_labels=CLASSES, n_instances=EACH)
    loader = torch.utils.data.DataLoader(
        images,
        batch_sampler=sampler,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )
    model = network(options.network).train()
    criterion = TripletLossWithMiner(0.2, HardTripletsMiner())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    steps = 0
    while True:
        for batch in loader:
            embeddings = nn.functional.normalize(model(batch["input_tensors"]))
            criterion(embeddings, batch["labels"]).backward()
            optimizer.step()
            optimizer.zero_grad()
            tick()
            steps += 1
            if steps == options.steps:
                return


RUNS = {"kindred fit": kindred, "plain script": plain, "OML": oml}


def one(options: argparse.Namespace) -> float:
    """Images a second of one run in this process."""
    ends: list[float] = []
    with contextlib.redirect_stdout(sys.stderr):
        RUNS[options.one](options, lambda: ends.append(time.perf_counter()))
    return CLASSES * EACH * (len(ends) - SKIPPED) / (ends[-1] - ends[SKIPPED - 1])


def rounds(options: argparse.Namespace, images_in: Path) -> Iterator[dict[str, float]]:
    """Images a second of each contender, a round at a time."""
    pythons = {"kindred fit": sys.executable, "plain script": sys.executable}
    if options.oml_python:
        pythons["OML"] = options.oml_python
    for _ in range(options.rounds):
        found = {}
        for name, python in pythons.items():
            command = [python, "-W", "ignore", __file__, "--one", name, "--images-in", str(images_in)]
            command += ["--network", options.network, "--steps", str(options.steps)]
            command += ["--workers", str(options.workers)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
            found[name] = float(done.stdout.splitlines()[-1])
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet10")
    parser.add_argument("--images", type=int, default=2000, help="files, in 100 classes")
    parser.add_argument("--side", type=int, default=256, help="their sides in pixels")
    parser.add_argument("--steps", type=int, default=200, help=f"of a run, of which {SKIPPED} do not count")
    parser.add_argument("--rounds", type=int, default=3)
    # As many as `kindred fit` takes by default.
    parser.add_argument("--workers", type=int, default=min(8, (os.cpu_count() or 1) - 1))
    parser.add_argument("--oml-python", metavar="FILE", help="python of the environment with OML")
    parser.add_argument("--smoke", action="store_true", help="tiny: does it run?")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    parser.add_argument("--one", choices=list(RUNS), help=argparse.SUPPRESS)
    parser.add_argument("--images-in", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(one(options))
        return
    if options.smoke:
        options.images, options.side, options.steps, options.rounds = 400, 80, SKIPPED + 2, 1
    with tempfile.TemporaryDirectory() as folder:
        images_in = Path(folder) / "images"
        write_images(images_in, options.images, 100, options.side)
        found = []
        for rates in rounds(options, images_in):
            found.append(rates)
            print({name: round(rate, 1) for name, rate in rates.items()}, flush=True)
    print(f"\n{options.network}, {SIDE} px, {CLASSES} × {EACH}:")
    print(f"{'':<14}{'images a second':>17}{'kindred fit is faster by':>27}")
    results = []
    for name in found[0]:
        rate = statistics.median(rates[name] for rates in found)
        ratio = statistics.median(rates["kindred fit"] / rates[name] for rates in found)
        print(f"{name:<14}{rate:>17.0f}{ratio:>27.2f}")
        results.append({"name": name, "images_a_second": round(rate, 1), "ratio": round(ratio, 3)})
    if options.out:
        about = {
            "command": " ".join(["python", *sys.argv]),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "cores": os.cpu_count(),
            "workers": options.workers,
            "network": options.network,
            "steps": options.steps,
            "rounds": found,
            "results": results,
        }
        options.out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
