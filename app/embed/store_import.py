"""``kindred index --embeddings``: import shards of embeddings into a store."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console

from app.embed.plan import Plan, read_manifest, read_plan
from app.embed.shards import ID, LABEL, PREFIX, VECTOR, read_batches
from app.index_images import Target
from app.progress import counting_progress
from models.errors import InputError
from serve.store.types import Item

# Items in a transaction and in memory; stores accept up to 20,000.
CHUNK = 16_384


def complete_plan(folder: Path) -> Plan:
    """The plan of a finished folder of embeddings.

    Raises:
        InputError: The folder has no embeddings, or the run has not finished.
    """
    plan = read_plan(folder)
    if read_manifest(folder)["complete"] is None:
        raise InputError(f"{folder}: is not complete; run kindred embed with the same options again")
    return plan


def import_embeddings(store: Target, folder: Path, plan: Plan, *, refresh: bool = False) -> None:
    """Store the items of all shards that ``store`` lacks (or all, to ``refresh``), and print the speed.

    Raises:
        InputError: A shard is missing or damaged.
        FingerprintMismatch: The store belongs to another model.
    """
    console = Console()
    total = int(read_manifest(folder)["complete"]["embedded"])
    skip_known = not refresh and store.count() > 0
    stored = seen = 0
    started = time.perf_counter()
    with counting_progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("importing", total=total)
        try:
            for batch in read_batches(folder, plan, CHUNK):
                seen += batch.num_rows
                items = list(_items(_unknown(store, batch) if skip_known else batch))
                if items:
                    stored += store.upsert(items, fingerprint=plan.fingerprint)
                progress.update(task, completed=seen)
        finally:
            # After Ctrl-C, too: what was stored stays, and the next start is fast.
            seconds = time.perf_counter() - started
            store.flush()
            if stored < seen:
                console.print(f"{seen - stored:,} of {total:,} items were in the store already")
            console.print(
                f"{stored:,} items imported in {seconds:.1f} s: {stored / seconds:,.0f} items/s; "
                f"{store.count():,} in the store"
            )


def _unknown(store: Target, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows whose id the store lacks."""
    known = store.get(batch.column(ID).to_pylist())
    return batch.filter(pa.array([item is None for item in known]))


def _items(batch: pa.RecordBatch) -> Iterator[Item]:
    column = batch.column(VECTOR)
    vectors = np.asarray(column.flatten()).reshape(batch.num_rows, column.type.list_size)
    names = [name for name in batch.schema.names if name not in (ID, LABEL, VECTOR)]
    metadata = batch.select(names).rename_columns([name.removeprefix(PREFIX) for name in names])
    described = metadata.to_pylist() if names else [{}] * batch.num_rows
    ids, labels = batch.column(ID).to_pylist(), batch.column(LABEL).to_pylist()
    for item_id, vector, label, about in zip(ids, vectors, labels, described, strict=True):
        yield Item(item_id, vector, label, about)
