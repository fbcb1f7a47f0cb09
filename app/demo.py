"""``kindred demo``: the main job from nothing to a running visual search."""

import shutil
import time
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from rich.console import Console

from app.evaluate import evaluate
from app.fit import run_training
from app.index import fill_store
from app.run import RunFolder
from app.serve import announce
from data.sources import open_source
from data.splits import split_classes
from models.bundle import Bundle
from models.errors import InputError
from serve.server import bind, run
from serve.settings import Settings
from serve.store.collection import FaissStore

CONFIGS = Path(__file__).parents[1] / "configs"

# Steps that measure this machine's speed before the length of the run is decided; the first ones, in which
# memory is allocated and kernels are chosen, do not count.
WARM_STEPS, TIMED_STEPS = 4, 12

# How often training stops to measure itself on the validation classes.
VALIDATIONS = 6


def demo(
    *,
    data: str = "glyphs",
    minutes: float = 2.5,
    out: Path = Path("runs/demo"),
    port: int = 8000,
    serve: bool = True,
) -> None:
    """Draw data, train, evaluate on unseen classes, and serve a visual search of them.

    Args:
        data: Your own images instead of the drawn characters: a folder with a folder for each class, or a ZIP
            file of one. They are trained on as configs/folder.yaml says.
        minutes: How long to train.
        out: Folder for everything that is made: checkpoints, logs, bundle, evaluation, store.
        port: Where the search page listens; 0 takes a free port.
        serve: Start the service at the end.
    """
    console = Console()
    if minutes <= 0:
        raise InputError(f"--minutes {minutes}: training needs more than no time")
    if serve:
        # A busy port is said now, not after the training.
        bind("127.0.0.1", port).close()
    console.rule("1 · images")
    table = open_source(data).table()
    parts = split_classes(table)
    trained_on = np.unique(table.labels[parts.rows("train")])
    console.print(
        f"{len(table)} images of {len(np.unique(table.labels))} classes; "
        f"{len(trained_on)} classes to train on, the test classes are never seen in training"
    )

    console.rule("2 · training")
    folder = RunFolder(out)
    train(data, out, minutes)

    console.rule("3 · retrieval among unseen classes")
    evaluate(bundle=[folder.bundle], data=data, split="test", out=out / "evaluation")

    console.rule("4 · index")
    bundle = Bundle.load(folder.bundle)
    # The drawn characters are searched among the unseen ones; of your own images you want to find every one.
    shown = table.take(parts.rows("test")) if data == "glyphs" else table
    # The store of an earlier demo holds another model's vectors.
    shutil.rmtree(out / "store", ignore_errors=True)
    with FaissStore.open(out / "store", dim=bundle.dim, fingerprint=bundle.fingerprint) as store:
        fill_store(store, bundle, shown)
    if not serve:
        console.print(f"serve it with: kindred serve --bundle {folder.bundle} --store {out / 'store'}")
        return

    console.rule("5 · service")
    settings = Settings.read(bundle=folder.bundle, store=out / "store", port=port)
    # Not the fastest backend: finding out would take as long as the rest.
    run(settings, bundle=bundle.optimize("eager"), on_start=announce)


class StepTimer(lightning.Callback):
    """Measures the median time of a training step, the first few left out."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:  # noqa: D102
        self._ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Median time of a step."""
        return float(np.median(np.diff(self._ends[WARM_STEPS - 1 :])))


def train(data: str, out: Path, minutes: float) -> None:
    """Train for about ``minutes``: the learning-rate schedule needs the number of steps, so measure first."""
    config = CONFIGS / ("demo.yaml" if data == "glyphs" else "folder.yaml")
    task = ["fit", f"--config={config}", f"--data.source={data}"]
    quiet = [
        "--trainer.enable_checkpointing=false",
        "--trainer.enable_model_summary=false",
        "--trainer.logger=false",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.limit_val_batches=0",
    ]
    steps = WARM_STEPS + TIMED_STEPS
    timer = StepTimer()
    run_training([*task, f"--run={out / 'probe'}", *quiet, f"--trainer.max_steps={steps}"], [timer])
    shutil.rmtree(out / "probe", ignore_errors=True)
    steps = max(steps, round(minutes * 60 / timer.seconds))
    Console().print(f"{timer.seconds * 1000:.0f} ms a step: {steps} steps in {minutes:g} minutes")
    length = [
        f"--trainer.max_steps={steps}",
        f"--trainer.val_check_interval={-(-steps // VALIDATIONS)}",
        "--trainer.check_val_every_n_epoch=null",
    ]
    run_training([*task, *length, f"--run={out}", "--overwrite"])
