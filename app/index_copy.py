"""``kindred index copy``: copy a collection to another store and check the copy."""

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from app.progress import counting_progress
from models.errors import InputError
from serve.store.types import Item, Store, Unsupported

# Items read, compared and written at a time.
PAGE = 1000
NEIGHBOURS = 10
# Stored vectors are float32, and an engine may normalize them once more.
_SAME = 1e-6


@dataclass
class Outcome:
    """Results of a copy and of its check."""

    copied: int = 0  # items written
    present: int = 0  # items that the target already had, identical
    source: int = 0  # items in the source at the end
    target: int = 0  # items in the target at the end
    sampled: int = 0  # items compared in full, thumbnails included
    different: list[str] = field(default_factory=list)  # ids of the sampled items that differ
    recall: float = 1.0  # recall@10 of the target's search against an exact one, over the sampled vectors


def copy(
    source: str,
    target: str,
    /,
    *,
    collection: str = "default",
    into: str | None = None,
    index_type: str | None = None,
    sample: int = 256,
) -> None:
    """Copy a collection to another store: from FAISS to Milvus, back, or to another index type.

    Items that the target already has are compared and skipped, so an interrupted copy continues where it
    stopped, and a repeated one copies only what changed. At the end the numbers of items, a random sample of
    items, and the target's search with an exact search are compared.

    Args:
        source: A store's folder (it may be in use by a service), file:PATH of an embedded Milvus, or
            milvus://HOST:PORT (its token from KINDRED_MILVUS_TOKEN).
        target: Likewise; created if missing.
        collection: Collection of the source.
        into: Collection of the target; by default it has the source's name.
        index_type: Index type of a new target; by default the source's if both are of one kind, else Flat.
        sample: Number of items to compare completely, thumbnails included.
    """
    into = into or collection
    if sample < 0:
        raise InputError(f"--sample {sample}: give 0 or more")
    if (_place(source), collection) == (_place(target), into):
        raise InputError(f"{source} is both source and target; name another store or collection")
    from serve.store.catalogue import open_store  # imports FAISS

    console = Console()
    with open_store(source, collection=collection, read_only=True) as old:
        if index_type is None and _kind(source) == _kind(target):
            index_type = old.index
        with open_store(target, old.dim, old.fingerprint, index_type, collection=into) as new:
            outcome = copy_items(old, new, console, sample=sample)
            console.print(_table(outcome, new.index))
            _refuse_differences(outcome, into)


def copy_items(old: Store, new: Store, console: Console, *, sample: int = 256) -> Outcome:
    """Copy the items that ``new`` lacks or that differ, then compare the stores; see :func:`copy`."""
    outcome = Outcome()
    total = old.count()
    chosen = set(random.Random(0).sample(range(total), min(sample, total)))  # noqa: S311
    drawn: list[Item] = []
    with counting_progress(console=console) as progress:
        task = progress.add_task("copying", total=total)
        after: int | None = None
        read = 0
        while True:
            page = old.scroll(after, PAGE, with_vectors=True)
            _copy_page(old, new, page.items, outcome)
            drawn += [item for at, item in enumerate(page.items, read) if at in chosen]
            read += len(page.items)
            progress.update(task, completed=outcome.copied + outcome.present)
            if page.next is None:
                break
            after = page.next
    for name in old.stats().field_indexes:
        try:
            new.create_field_index(name)
        except Unsupported as error:
            console.print(f"filters on {name}: {error}", markup=False)
    new.flush()
    _check(old, new, drawn, outcome)
    return outcome


def _copy_page(old: Store, new: Store, items: list[Item], outcome: Outcome) -> None:
    there = new.get([item.id for item in items], with_vectors=True)
    missing = [item for item, found in zip(items, there, strict=True) if not _same(old, new, item, found)]
    outcome.present += len(items) - len(missing)
    if missing:
        whole = [
            Item(item.id, item.vector, item.label, item.metadata, old.thumbnail(item.id)) for item in missing
        ]
        outcome.copied += new.upsert(whole, fingerprint=old.fingerprint)


def _same(old: Store, new: Store, item: Item, found: Item | None) -> bool:
    return (
        found is not None
        and (item.label, item.metadata) == (found.label, found.metadata)
        and bool(np.abs(np.asarray(item.vector) - np.asarray(found.vector)).max() <= _SAME)
        and old.thumbnail(item.id) == new.thumbnail(item.id)
    )


def _check(old: Store, new: Store, drawn: list[Item], outcome: Outcome) -> None:
    """Fill in the counts, the comparison of the sample, and the recall of ``outcome``."""
    outcome.source, outcome.target = old.count(), new.count()
    outcome.sampled = len(drawn)
    if not drawn:
        return
    for item, found in zip(drawn, new.get([item.id for item in drawn], with_vectors=True), strict=True):
        if not _same(old, new, item, found):
            outcome.different.append(str(item.id))
    queries = np.asarray([item.vector for item in drawn], dtype=np.float32)
    exact = old.search(queries, NEIGHBOURS, exact=True, with_metadata=False).hits
    found_hits = new.search(queries, NEIGHBOURS, with_metadata=False).hits
    shares = []
    for right, hits in zip(exact, found_hits, strict=True):
        # An equally similar item counts as found.
        floor = right[-1].similarity - 1e-5
        shares.append(min(1.0, sum(hit.similarity >= floor for hit in hits) / len(right)))
    outcome.recall = float(np.mean(shares))


def _place(store: str) -> str:
    """The one name of a store's folder; addresses stay as they are."""
    return store if _kind(store) else str(Path(store).resolve())


def _kind(place: str) -> str:
    scheme, colon, _ = place.partition(":")
    return "" if not colon else "file" if scheme == "file" else "server"


def _table(outcome: Outcome, index: str) -> Table:
    table = Table(title=f"index {index}", show_header=False)
    table.add_row("copied", f"{outcome.copied:,}")
    table.add_row("there already, the same", f"{outcome.present:,}")
    table.add_row("items in source / target", f"{outcome.source:,} / {outcome.target:,}")
    table.add_row("sampled items that differ", f"{len(outcome.different)} of {outcome.sampled}")
    table.add_row(f"recall@{NEIGHBOURS} against exact", f"{outcome.recall:.4f}")
    return table


def _refuse_differences(outcome: Outcome, into: str) -> None:
    if outcome.different:
        raise InputError(
            f"{len(outcome.different)} of {outcome.sampled} sampled items differ in {into} (the first: "
            f"{outcome.different[0]}); stop other writers and copy once more"
        )
    if outcome.source != outcome.target:
        raise InputError(
            f"the source has {outcome.source:,} items and {into} {outcome.target:,}: it held others before, "
            "or items were written during the copy; copy once more, or into a new collection"
        )
