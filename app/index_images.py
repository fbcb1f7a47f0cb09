"""The destination of ``kindred index``, and the images that it lacks: embed and store them."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from app.progress import counting_progress
from data.table import ImageTable
from models.bundle import Bundle, usable_device
from models.errors import InputError
from models.preprocess import ImageError, decode_image
from serve.client import Client, ServiceError
from serve.client.remote import RemoteCollection
from serve.embedding import jpeg_thumbnail
from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.milvus.engine import is_address
from serve.store.types import Item, Store

# Items in a transaction: enough to wait for the disk rarely, few enough to lose little after Ctrl-C.
CHUNK = 1024

Rows = NDArray[np.int64]
Target = Store | RemoteCollection


@contextmanager
def open_target(
    store: str | None,
    url: str | None,
    collection: str,
    dim: int,
    fingerprint: str,
    index: str | None,
    device: str,
) -> Iterator[Target]:
    """Open one collection; create it if it is missing.

    ``url`` is that of a running service, ``store`` a folder or the address of a Milvus server: one is None.
    Exact segments of a folder are searched on ``device``.

    Raises:
        InputError: The collection belongs to another model or cannot be reached, or the device cannot be
            used.
    """
    if url is not None:
        with Client(url, key=os.environ.get("KINDRED_WRITE_KEY")) as client:
            try:
                yield RemoteCollection(client, collection, dim, fingerprint, index)
            except ServiceError as error:
                raise InputError(f"{url}: {error}") from error
    elif is_address(store):
        from serve.store.catalogue import open_store  # imports pymilvus

        with open_store(str(store), dim, fingerprint, index, collection=collection) as milvus:
            yield milvus
    else:
        tuning = Tuning(device=str(usable_device(device)))
        with FaissStore.open(
            str(store), dim, fingerprint, index, collection=collection, tuning=tuning
        ) as folder:
            yield folder


def fill_store(
    store: Target,
    model: Bundle,
    table: ImageTable,
    *,
    thumbnails: int = 160,
    batch_size: int = 64,
    refresh: bool = False,
    prune: bool = False,
) -> None:
    """Embed every image of ``table`` that ``store`` lacks; see ``kindred index``."""
    console = Console()
    rows = np.arange(len(table)) if refresh else _missing(store, table)
    if len(rows) < len(table):
        console.print(f"{len(table) - len(rows)} of {len(table)} images are in the store already")
    broken: list[str] = []
    stored = 0
    with counting_progress(console=console) as progress:
        task = progress.add_task("indexing", total=len(rows))
        try:
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                items = list(_items(model, table, chunk, thumbnails, batch_size, broken))
                stored += store.upsert(items, fingerprint=model.fingerprint)
                progress.update(task, completed=start + len(chunk))
        finally:
            # After Ctrl-C, too: what was embedded stays, and the next start is fast.
            store.flush()
            console.print(
                f"{stored} images indexed, {len(broken)} broken ones skipped, {store.count()} in the store"
            )
            for message in broken[:20]:
                console.print(f"  skipped {message}", markup=False)
            if len(broken) > 20:
                console.print(f"  and {len(broken) - 20} more")
    if len(rows) and len(broken) == len(rows):
        raise InputError(f"none of the {len(rows)} images could be read; see the messages above")
    if prune:  # last: a renamed image is found all the time, and a run that fails deletes nothing
        _delete_others(store, table, console)


def _delete_others(store: Target, table: ImageTable, console: Console) -> None:
    """Delete the items whose images are not in ``table``."""
    present = {table.name(row) for row in range(len(table))}
    gone = [item.id for item in store.scan() if item.id not in present]
    for start in range(0, len(gone), CHUNK):
        store.delete(gone[start : start + CHUNK])
    console.print(f"{len(gone)} items deleted whose images are not in the data, {store.count()} left")


def _missing(store: Target, table: ImageTable) -> Rows:
    """Rows whose id the store lacks."""
    keep: list[int] = []
    for start in range(0, len(table), CHUNK):
        chunk = range(start, min(start + CHUNK, len(table)))
        known = store.get([table.name(row) for row in chunk])
        keep.extend(row for row, item in zip(chunk, known, strict=True) if item is None)
    return np.array(keep, dtype=np.int64)


def _items(
    model: Bundle,
    table: ImageTable,
    rows: Rows,
    thumbnails: int,
    batch_size: int,
    broken: list[str],
) -> Iterator[Item]:
    """The items of one chunk; what cannot be read or decoded is appended to ``broken``."""
    readable: list[int] = []
    # Thumbnails are made while an image is in memory: a chunk of large photographs does not fit.
    small: list[Future[bytes | None]] = []

    def thumbnail(content: bytes) -> bytes | None:
        if thumbnails == 0:
            return None
        given = model.preprocess
        image = decode_image(content, "RGB", given.limits, at_least=thumbnails, white_level=given.white_level)
        return jpeg_thumbnail(image, thumbnails)

    with ThreadPoolExecutor() as pool:

        def read() -> Iterator[bytes]:
            for row in rows.tolist():
                try:
                    content = table.read(row)
                except ImageError as error:
                    broken.append(str(error))
                    continue
                readable.append(row)
                small.append(pool.submit(thumbnail, content))
                yield content

        for position, vector in enumerate(model.embed_each(read(), batch_size)):
            row = readable[position]
            if isinstance(vector, ImageError):
                broken.append(f"{table.name(row)}: {vector}")
                continue
            yield Item(
                id=table.name(row),
                vector=vector,
                label=table.class_names[table.labels[row]],
                metadata={name: column[row].as_py() for name, column in table.metadata.items()},
                thumbnail=small[position].result(),
            )
