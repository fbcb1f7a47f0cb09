"""Embed a source of images on one or more devices, and print the speed."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerStatus
from rich.console import Console

from app.embed.plan import REJECTS, Plan, begin, content_of
from app.embed.predict import Embedder
from app.embed.shards import finish, missing_shards
from app.embed.writing import EmbedProgress, ShardWriter
from app.lightning_output import quieten
from data.sources import open_source
from data.splits import select
from models.bundle import Bundle
from models.errors import InputError
from models.inference import versions

# Processes wait for each other only at the end, and the last shard of one may take long.
_TIMEOUT = timedelta(days=7)


def embed_source(
    bundle: Path,
    data: str,
    out: Path,
    *,
    split: str | None,
    devices: str,
    accelerator: str,
    nodes: int,
    batch_size: int,
    workers: int | None,
    shard_rows: int,
) -> None:
    """Write the shards that ``out`` lacks; for the arguments see :func:`app.commands.embed.embed`."""
    model = Bundle.load(bundle, device="cpu")  # Lightning moves it
    table = open_source(data).table()
    rows, _ = select(table, split, model.info.get("split"))
    source = str(Path(data).expanduser().absolute()) if Path(data).expanduser().exists() else data
    wanted = Plan(
        model.fingerprint,
        model.dim,
        source,
        split,
        content_of(table, rows),
        len(rows),
        shard_rows,
        versions("torch", "pyarrow"),
    )
    plan = begin(out, wanted)
    console = Console()
    if not missing_shards(out, plan):
        console.print(_summary(out, finish(out, plan)))
        return
    quieten()
    embedder = Embedder(model, table, rows, out, plan, batch_size=batch_size, workers=workers)
    writer = ShardWriter(embedder)
    trainer = _trainer(devices, accelerator, nodes, [writer, EmbedProgress(writer)])
    started = time.perf_counter()
    with _without_image_warnings():
        _predict(trainer, embedder)
    share = embedder.waiting_share
    trainer.strategy.barrier("shards written")
    if trainer.is_global_zero:
        seconds = time.perf_counter() - started
        count = sum(len(plan.places(shard)) for shard in embedder.missing)
        console.print(_summary(out, finish(out, plan)))
        console.print(
            f"{count:,} of them now, in {seconds:.1f} s on {trainer.world_size} "
            f"{'device' if trainer.world_size == 1 else 'devices'}: {count / seconds:,.0f} images/s, "
            f"{share:.0%} of the time waiting for data"
        )


def _trainer(devices: str, accelerator: str, nodes: int, callbacks: list[Any]) -> Trainer:
    if devices != "auto" and (not devices.isdecimal() or int(devices) < 1):
        raise InputError(f"--devices {devices}: give a number of devices, or auto")
    strategy: Any = "auto"
    several_gpus = devices == "auto" and accelerator != "cpu" and torch.cuda.device_count() > 1
    if nodes > 1 or several_gpus or (devices != "auto" and int(devices) > 1):
        strategy = DDPStrategy(timeout=_TIMEOUT)
    try:
        return Trainer(
            accelerator=accelerator,
            devices=devices if devices == "auto" else int(devices),
            num_nodes=nodes,
            strategy=strategy,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--devices {devices} --accelerator {accelerator}: {reason}") from error


def _predict(trainer: Trainer, embedder: Embedder) -> None:
    try:
        trainer.predict(embedder, return_predictions=False)
    except SystemExit:  # Lightning raises it after Ctrl-C
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        raise KeyboardInterrupt from None


@contextmanager
def _without_image_warnings() -> Iterator[None]:
    """Stop the loader from logging broken images, because rejects.csv lists them."""
    log = logging.getLogger("data.loader")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _summary(out: Path, figures: dict[str, int]) -> str:
    text = f"{figures['embedded']:,} of {figures['images']:,} images have vectors in {out}"
    return text + (
        f", {figures['rejected']:,} are broken: see {out / REJECTS}" if figures["rejected"] else ""
    )
