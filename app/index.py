"""``kindred index``: put images, or embeddings of them, into a store or a running service."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from cyclopts import App
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.embed.importing import complete_plan, import_embeddings
from app.index_target import Target, open_target
from app.memory import keep_freed_memory
from data.sources import open_source
from data.splits import select
from data.table import ImageTable
from models.bundle import Bundle
from models.errors import InputError
from models.preprocess import ImageError, decode_image
from serve.embedding.decode import jpeg_thumbnail
from serve.store.types import Item

app = App(name="index", help="Put images, or embeddings of them, into a store that can be searched.")
app.command("app.index_copy:copy", help="Copy a collection to another store, and check the copy")
app.command("app.tune:tune", help="Pick the index type and its parameters on your own vectors")

# Items a transaction: large enough that waiting for the disk is rare, small enough that Ctrl-C loses little.
CHUNK = 1024

Rows = NDArray[np.int64]


@app.default
def index(
    *,
    bundle: Path | None = None,
    data: str | None = None,
    embeddings: Path | None = None,
    store: str | None = None,
    url: str | None = None,
    split: str | None = None,
    collection: str = "default",
    index_type: str | None = None,
    thumbnails: int = 160,
    batch_size: int = 64,
    refresh: bool = False,
    device: str = "auto",
) -> None:
    """Put images, or embeddings of them, into a store that can be searched.

    Ids are the images' paths inside the source. Images that the store already has are left alone, so an
    interrupted run goes on where it stopped. Broken images are named, counted and skipped.

    Args:
        bundle: Folder of the model.
        data: A folder, a ZIP file, a CSV or Parquet table, or the name of a known data set.
        embeddings: Instead of bundle and data, a folder that kindred embed wrote; without thumbnails.
        store: Folder of the store; made when missing. No service may have it open. Or the address of a
            Milvus, such as milvus://host:19530.
        url: Address of a running service to fill instead, such as http://127.0.0.1:8000; a missing collection
            is made there. The key, where the service wants one, is taken from KINDRED_WRITE_KEY.
        split: Only the train, val or test part of the source, split as for the model's training. All of it by
            default.
        collection: Collection inside the store or the service.
        index_type: "Flat" (the default of a new collection) searches exactly; any other FAISS factory string
            approximately.
        thumbnails: Longer side of the stored thumbnails in pixels; 0 stores none.
        batch_size: Images a forward pass.
        refresh: Embed again what the store already has.
        device: "auto", "cpu" or "cuda".
    """
    if embeddings is not None:
        if bundle is not None or data is not None or split is not None:
            raise InputError("--embeddings says it all; leave --bundle, --data and --split out")
        plan = complete_plan(embeddings)
        with open_target(store, url, collection, plan.dim, plan.fingerprint, index_type, device) as target:
            import_embeddings(target, embeddings, plan, refresh=refresh)
        return
    if bundle is None or data is None:
        raise InputError("give --bundle and --data, or --embeddings with a folder that kindred embed wrote")
    keep_freed_memory()
    model = Bundle.load(bundle, device)
    table = open_source(data).table()
    if split is not None:
        table = table.take(select(table, split, model.info.get("split"))[0])
    with open_target(store, url, collection, model.dim, model.fingerprint, index_type, device) as target:
        fill_store(target, model, table, thumbnails=thumbnails, batch_size=batch_size, refresh=refresh)


def fill_store(
    store: Target,
    model: Bundle,
    table: ImageTable,
    *,
    thumbnails: int = 160,
    batch_size: int = 64,
    refresh: bool = False,
) -> None:
    """Embed every image of ``table`` that ``store`` lacks; see :func:`index`."""
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
