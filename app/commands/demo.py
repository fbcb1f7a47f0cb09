"""``kindred demo``: from images to a running visual search."""

import shutil
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from app.commands.serve import announce
from models.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"

# Steps that measure this machine's speed before the number of steps is chosen. The first ones are not timed,
# because memory is allocated and kernels are chosen in them.
WARM_STEPS, TIMED_STEPS = 4, 12

# Number of validations during training.
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
            file of one. Training then uses configs/folder.yaml.
        minutes: Duration of training.
        out: Folder for all results: checkpoints, logs, bundle, evaluation, store.
        port: Port of the search page; 0 chooses a free one.
        serve: Start the service at the end.
    """
    if minutes <= 0:
        raise InputError(f"--minutes {minutes}: must be more than 0")
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
        # Report a busy port now, not after training.
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
    # Of the drawn characters only unseen ones are indexed, of your own images all.
    shown = table.take(parts.rows("test")) if data == "glyphs" else table
    # An earlier demo's store holds vectors of another model.
    shutil.rmtree(out / "store", ignore_errors=True)
    with FaissStore.open(out / "store", dim=bundle.dim, fingerprint=bundle.fingerprint) as store:
        fill_store(store, bundle, shown)
    if not serve:
        console.print(f"serve it with: kindred serve --bundle {folder.bundle} --store {out / 'store'}")
        return

    console.rule("5 · service")
    settings = Settings.read(bundle=folder.bundle, store=out / "store", port=port)
    # Finding the fastest backend would take as long as the rest.
    run(settings, bundle=bundle.optimize("eager"), on_start=announce)


def train(data: str, out: Path, minutes: float) -> None:
    """Train for about ``minutes``; a few timed steps give the number of steps, which the schedule needs."""
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
