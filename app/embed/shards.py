"""Parquet shards, written atomically; each records its plan and the images that could not be read."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from app.embed.plan import REJECTS, Plan, write_manifest
from data.table import ImageTable
from models.errors import InputError
from models.files import replacing
from serve.store.store_folder import disk_errors, replace_file, sync_folder

ID, LABEL, VECTOR = "id", "label", "vector"
# Prefix of metadata columns with these names; it is removed when they are read.
PREFIX = "metadata."

Reject = tuple[str, str]
"""Name of an image, and the reason why it has no vector."""


def write_shard(
    folder: Path,
    plan: Plan,
    shard: int,
    table: ImageTable,
    rows: NDArray[np.int64],
    vectors: NDArray[np.float32],
    rejects: Sequence[Reject],
) -> None:
    """Write one shard atomically and durably: vectors, float32 (N, dim), of rows of the table, int64 (N,).

    Raises:
        DiskFull: The disk is full; nothing of the shard is kept.
    """
    content = pa.table(_columns(plan, table, rows, vectors))
    about = {"shard": shard, "plan": asdict(plan), "rejects": list(rejects)}
    content = content.replace_schema_metadata({"kindred": json.dumps(about)})
    path = folder / plan.file(shard)
    with disk_errors(path):
        with replacing(path) as fresh, fresh.open("wb") as file:
            # Vectors do not compress.
            texts = [name for name in content.column_names if name != VECTOR]
            compression = dict.fromkeys(texts, "zstd") | {f"{VECTOR}.list.element": "none"}
            pq.write_table(content, file, compression=compression, use_dictionary=texts)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(folder)


def _columns(
    plan: Plan, table: ImageTable, rows: NDArray[np.int64], vectors: NDArray[np.float32]
) -> dict[str, Any]:
    chosen = pa.array(rows)
    labels = pa.array(table.class_names, pa.string()).take(pa.array(table.labels[rows]))
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    columns: dict[str, Any] = {
        ID: table.names.take(chosen).cast(pa.string()),
        LABEL: labels,
        VECTOR: pa.FixedSizeListArray.from_arrays(flat, plan.dim),
    }
    for name, column in table.metadata.items():
        values = column.take(chosen)
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        columns[f"{PREFIX}{name}" if name in columns or name.startswith(PREFIX) else name] = values
    return columns


def rejects_of(folder: Path, plan: Plan, shard: int) -> list[Reject] | None:
    """The rejected images of a finished shard; None if the shard is missing, damaged or of another plan."""
    try:
        footer = pq.read_metadata(folder / plan.file(shard))
        about = json.loads(footer.metadata[b"kindred"])
        rejects = [(str(name), str(reason)) for name, reason in about["rejects"]]
        same = about["shard"] == shard and about["plan"]["content"] == plan.content
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None
    whole = footer.num_rows + len(rejects) == len(plan.places(shard))
    return rejects if same and whole and about["plan"]["fingerprint"] == plan.fingerprint else None


def missing_shards(folder: Path, plan: Plan) -> list[int]:
    """Numbers of the shards that are missing, damaged or of another plan."""
    present = {entry.name for entry in os.scandir(folder)}
    return [
        shard
        for shard in range(plan.shards)
        if plan.file(shard) not in present or rejects_of(folder, plan, shard) is None
    ]


def finish(folder: Path, plan: Plan) -> str:
    """Check that all shards are present, write rejects.csv, and mark the folder as complete.

    Returns:
        A sentence with the numbers of embedded and of broken images.

    Raises:
        InputError: A shard is missing or damaged.
    """
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["id", "reason"])
    rejected = 0
    for shard in range(plan.shards):
        rejects = rejects_of(folder, plan, shard)
        if rejects is None:
            raise InputError(
                f"{folder / plan.file(shard)}: is missing or damaged; run the same command again"
            )
        writer.writerows(rejects)
        rejected += len(rejects)
    figures = {"images": plan.images, "embedded": plan.images - rejected, "rejected": rejected}
    with disk_errors(folder / REJECTS):
        replace_file(folder / REJECTS, table.getvalue().encode())
        write_manifest(folder, plan, figures)
    for entry in os.scandir(folder):
        if entry.name.endswith(".tmp"):  # left by a process that was killed
            Path(entry.path).unlink(missing_ok=True)
    summary = f"{figures['embedded']:,} of {plan.images:,} images have vectors in {folder}"
    return summary + (f", {rejected:,} are broken: see {folder / REJECTS}" if rejected else "")


def read_batches(folder: Path, plan: Plan, rows: int) -> Iterator[pa.RecordBatch]:
    """Read all shards in order, in batches of up to ``rows`` rows.

    Raises:
        InputError: A shard is missing or damaged.
    """
    for shard in range(plan.shards):
        path = folder / plan.file(shard)
        if rejects_of(folder, plan, shard) is None:
            raise InputError(f"{path}: is missing, damaged or of another run; run kindred embed again")
        try:
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(rows)
        except (OSError, pa.ArrowInvalid) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path}: cannot be read ({reason}); remove it and run kindred embed again"
            ) from error
