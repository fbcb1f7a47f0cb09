"""``kindred embed``: turn images into sharded Parquet files of vectors."""

import time
from pathlib import Path

from rich.console import Console

from models.errors import InputError


def embed(
    *,
    bundle: Path,
    data: str,
    out: Path,
    split: str | None = None,
    devices: str = "auto",
    accelerator: str = "auto",
    nodes: int = 1,
    batch_size: int = 64,
    workers: int | None = None,
    shard_rows: int = 16_384,
) -> None:
    """Turn images into sharded Parquet files of vectors, on any number of devices.

    To continue after an interruption, run the same command again, with any number of devices: finished shards
    are kept, and every image is embedded exactly once. Broken images are skipped and listed in rejects.csv.
    kindred index --embeddings reads the folder into a store.

    Args:
        bundle: Folder of the model.
        data: A folder, a ZIP file, a CSV or Parquet table, or the name of a known data set.
        out: Folder of the shards; created if missing.
        split: train, val or test: only this split of the source, made as for the model's training. By default
            all images.
        devices: Number of devices on each node, or auto: all GPUs, or one CPU process.
        accelerator: auto, cpu, gpu or another one of Lightning.
        nodes: Number of machines; start the command on each with torchrun or SLURM.
        batch_size: Images in a forward pass.
        workers: Processes for each device that read images; by default the cores are divided among devices.
        shard_rows: Images in a file.
    """
    for name, value in (("nodes", nodes), ("batch-size", batch_size), ("shard-rows", shard_rows)):
        if value < 1:
            raise InputError(f"--{name} {value}: must be at least 1")
    if workers is not None and workers < 0:
        raise InputError(f"--workers {workers}: must be at least 0")
    from app.embed.plan import Plan, begin, content_of
    from app.embed.predict import Embedder, make_trainer, predict
    from app.embed.shards import finish, missing_shards
    from app.embed.writing import EmbedProgress, ShardWriter
    from app.lightning_output import quieten
    from data.sources import open_source
    from data.splits import select
    from models.bundle import Bundle
    from models.inference import versions

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
        console.print(finish(out, plan))
        return
    quieten()
    embedder = Embedder(model, table, rows, out, plan, batch_size=batch_size, workers=workers)
    writer = ShardWriter(embedder)
    trainer = make_trainer(devices, accelerator, nodes, [writer, EmbedProgress(writer)])
    started = time.perf_counter()
    predict(trainer, embedder)
    share = embedder.waiting_share
    trainer.strategy.barrier("shards written")
    if trainer.is_global_zero:
        seconds = time.perf_counter() - started
        count = sum(len(plan.places(shard)) for shard in embedder.missing)
        console.print(finish(out, plan))
        console.print(
            f"{count:,} of them now, in {seconds:.1f} s on {trainer.world_size} "
            f"{'device' if trainer.world_size == 1 else 'devices'}: {count / seconds:,.0f} images/s, "
            f"{share:.0%} of the time waiting for data"
        )
