"""``kindred index``: put images, or embeddings of them, into a store or a running service."""

import json
from pathlib import Path

from cyclopts import App
from rich.console import Console

from models.errors import InputError

app = App(name="index", help="Put images, or embeddings of them, into a store that can be searched.")
app.command("app.index_copy:copy", help="Copy a collection to another store, and check the copy")


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
    prune: bool = False,
    device: str = "auto",
) -> None:
    """Put images, or embeddings of them, into a store that can be searched.

    Ids are the images' paths inside the source. Images that the store already has are skipped, so an
    interrupted run continues where it stopped. Broken images are named, counted and skipped.

    Args:
        bundle: Folder of the model.
        data: A folder, a ZIP file, a CSV or Parquet table, or the name of a known data set.
        embeddings: A folder that kindred embed wrote, instead of bundle and data; it has no thumbnails.
        store: Folder of the store, created if missing, which no service may have open; or the address of a
            Milvus server, such as milvus://host:19530.
        url: Address of a running service to fill instead, such as http://127.0.0.1:8000; a missing collection
            is created. If the service needs a key, set KINDRED_WRITE_KEY.
        split: train, val or test: only this split of the source, made as for the model's training. By default
            all images.
        collection: Collection inside the store or the service.
        index_type: FAISS factory string of a new collection; "Flat" (the default) searches exactly.
        thumbnails: Longer side of stored thumbnails in pixels; 0 stores none.
        batch_size: Images in a forward pass.
        refresh: Embed and store again images that the store already has.
        prune: Delete the items whose images are not in the data: files that were deleted, renamed or moved to
            another class. Without it, they stay.
        device: "auto", "cpu" or "cuda".
    """
    if (store is None) == (url is None):
        raise InputError("index: give either --store FOLDER or --url ADDRESS of a running service")
    for name, value, least in (("batch-size", batch_size, 1), ("thumbnails", thumbnails, 0)):
        if value < least:
            raise InputError(f"--{name} {value}: must be at least {least}")
    if prune and (embeddings is not None or split is not None):
        raise InputError("--prune wants the whole data: leave --embeddings and --split out")
    if embeddings is not None:
        if bundle is not None or data is not None or split is not None:
            raise InputError("with --embeddings, leave --bundle, --data and --split out")
        from app.embed.store_import import complete_plan, import_embeddings
        from app.index_images import open_target

        plan = complete_plan(embeddings)
        with open_target(store, url, collection, plan.dim, plan.fingerprint, index_type, device) as target:
            import_embeddings(target, embeddings, plan, refresh=refresh)
        return
    if bundle is None or data is None:
        raise InputError("give --bundle and --data, or --embeddings with a folder that kindred embed wrote")
    from app.index_images import fill_store, open_target
    from app.memory import keep_freed_memory
    from data.sources import open_source
    from data.splits import select
    from models.bundle import Bundle

    keep_freed_memory()
    model = Bundle.load(bundle, device)
    table = open_source(data).table()
    if split is not None:
        table = table.take(select(table, split, model.info.get("split"))[0])
    with open_target(store, url, collection, model.dim, model.fingerprint, index_type, device) as target:
        fill_store(
            target, model, table, thumbnails=thumbnails, batch_size=batch_size, refresh=refresh, prune=prune
        )


@app.command(help="Choose the index type and its parameters on your own vectors")
def tune(
    *,
    embeddings: Path | None = None,
    store: Path | None = None,
    collection: str = "default",
    recall: float = 0.99,
    memory: str = "2GB",
    queries: int = 1000,
    out: Path | None = None,
    seed: int = 0,
) -> None:
    """Find the fastest index that reaches a recall within a memory limit, measured on your own vectors.

    Args:
        embeddings: A file of vectors: .npy, .npz or .parquet.
        store: Folder of a store whose vectors are used instead.
        collection: Collection of the store.
        recall: Share of the true 10 nearest neighbours that must be found, in (0, 1].
        memory: Size limit of the index, for example 512MB or 2GB.
        queries: Number of vectors to search for.
        out: JSON file for all measurements.
        seed: Random seed of the choice of queries.
    """
    if (embeddings is None) == (store is None):
        raise InputError("give either --embeddings FILE or --store FOLDER")
    if queries < 1:
        raise InputError(f"--queries {queries}: must be at least 1")
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(f"--out {out}: name a file in a folder that exists")
    from app.evaluation.embedding_files import load_embeddings
    from app.evaluation.index_recall import store_vectors
    from app.memory import parse_size
    from app.tune import as_table, tune_vectors
    from models.metrics.inputs import as_unit_vectors
    from serve.store.collection import FaissStore

    limit = parse_size(memory)
    if embeddings is not None:
        vectors = as_unit_vectors(load_embeddings(embeddings).vectors).numpy()
    else:
        with FaissStore.open(str(store), collection=collection, create=False, read_only=True) as opened:
            vectors = store_vectors(opened)[1]
    measured, chosen = tune_vectors(vectors, recall, limit, queries=queries, seed=seed)
    console = Console()
    console.print(as_table(measured, chosen, recall, limit))
    if out is not None:
        results = {
            "measured": [entry.to_dict() for entry in measured],
            "chosen": chosen.to_dict() if chosen else None,
        }
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if chosen is None:
        raise InputError(
            f"no index reaches recall {recall:g} within {memory}; allow more memory or less recall"
        )
    console.print(
        f"choose --index-type {chosen.index}" + (f" with {chosen.parameters}" if chosen.parameters else "")
    )
