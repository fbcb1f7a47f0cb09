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
