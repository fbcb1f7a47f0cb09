"""``kindred demo``: the main job from nothing to a running visual search."""

import shutil
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from app.commands.serve import announce
from models.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"

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
    if minutes <= 0:
        raise InputError(f"--minutes {minutes}: training needs more than no time")
    from app.commands.evaluate import evaluate
    from app.index_images import fill_store
    from app.run import RunFolder
    from data.sources import open_source
    from data.splits import split_classes
    from models.bundle import Bundle
    from serve.server import bind, run
    from serve.settings import Settings
    from serve.store.collection import FaissStore

    console = Console()
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


def train(data: str, out: Path, minutes: float) -> None:
    """Train for about ``minutes``: the learning-rate schedule needs the number of steps, so measure first."""
    from lightning.pytorch.callbacks import LambdaCallback

    from app.fit import run_training

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
    ends: list[float] = []
    timer = LambdaCallback(on_train_batch_end=lambda *_: ends.append(time.perf_counter()))
    run_training([*task, f"--run={out / 'probe'}", *quiet, f"--trainer.max_steps={steps}"], [timer])
    seconds = float(np.median(np.diff(ends[WARM_STEPS - 1 :])))
    shutil.rmtree(out / "probe", ignore_errors=True)
    steps = max(steps, round(minutes * 60 / seconds))
    Console().print(f"{seconds * 1000:.0f} ms a step: {steps} steps in {minutes:g} minutes")
    length = [
        f"--trainer.max_steps={steps}",
        f"--trainer.val_check_interval={-(-steps // VALIDATIONS)}",
        "--trainer.check_val_every_n_epoch=null",
    ]
    run_training([*task, *length, f"--run={out}", "--overwrite"])
