"""``kindred embed``: turn images into sharded Parquet files of vectors."""

from pathlib import Path

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

    Run the same command again after an interruption of any kind, with as many devices as you like: finished
    shards are kept, every image is embedded exactly once. Broken images are listed in rejects.csv and left
    out. kindred index --embeddings reads the folder into a store.

    Args:
        bundle: Folder of the model.
        data: A folder, a ZIP file, a CSV or Parquet table, or the name of a known data set.
        out: Folder of the shards; made when missing.
        split: Only the train, val or test part of the source, split as for the model's training. All of it by
            default.
        devices: How many devices of each node: a number, or auto for all there are (of CPUs, one).
        accelerator: auto, cpu, gpu or any other that Lightning knows.
        nodes: How many machines take part; start the command on each with torchrun or SLURM.
        batch_size: Images a forward pass.
        workers: Processes that read images, for each device; by default the cores are divided among the
            devices.
        shard_rows: Images a file.
    """
    for name, value in (("nodes", nodes), ("batch-size", batch_size), ("shard-rows", shard_rows)):
        if value < 1:
            raise InputError(f"--{name} {value}: must be at least 1")
    from app.embed.devices import embed_source

    embed_source(
        bundle,
        data,
        out,
        split=split,
        devices=devices,
        accelerator=accelerator,
        nodes=nodes,
        batch_size=batch_size,
        workers=workers,
        shard_rows=shard_rows,
    )
