"""Embeds the images that a store lacks and puts them into it."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.index_target import Target
from data.table import ImageTable
from models.bundle import Bundle
from models.errors import InputError
from models.preprocess import ImageError, decode_image
from serve.embedding.decode_stage import jpeg_thumbnail
from serve.store.types import Item

# Items a transaction: large enough that waiting for the disk is rare, small enough that Ctrl-C loses little.
CHUNK = 1024

Rows = NDArray[np.int64]


def fill_store(
    store: Target,
    model: Bundle,
    table: ImageTable,
    *,
    thumbnails: int = 160,
    batch_size: int = 64,
    refresh: bool = False,
) -> None:
    """Embed every image of ``table`` that ``store`` lacks; see ``kindred index``."""
    console = Console()
    rows = np.arange(len(table)) if refresh else _missing(store, table)
    if len(rows) < len(table):
        console.print(f"{len(table) - len(rows)} of {len(table)} images are in the store already")
    broken: list[str] = []
    stored = 0
    columns = (TextColumn("indexing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("indexing", total=len(rows))
        try:
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                items = list(_items(model, table, chunk, thumbnails, batch_size, broken))
                stored += store.upsert(items, fingerprint=model.fingerprint)
                progress.update(task, completed=start + len(chunk))
        finally:
            # After Ctrl-C as well: what was embedded stays, and the next start finds it quickly.
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
    # Made while the image is at hand: a chunk of large photographs does not fit into memory.
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
