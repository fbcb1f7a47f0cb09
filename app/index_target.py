"""Where ``kindred index`` puts things: a store's folder, a Milvus, or a running service."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from models.bundle import usable_device
from models.errors import InputError
from serve.client import Client, ServiceError
from serve.client.remote import RemoteCollection
from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.milvus.engine import TOKEN, is_address
from serve.store.types import Item, ItemId


class Target(Protocol):
    """What can be filled: a store, or a collection of a running service."""

    def get(self, ids: Sequence[ItemId], /) -> Sequence[object | None]:
        """Items in the order of ``ids``, None where there is none."""

    def upsert(self, items: Iterable[Item], *, fingerprint: str | None = None) -> int:
        """Store items; returns how many."""

    def count(self) -> int:
        """Number of items."""

    def flush(self) -> None:
        """Write what is in memory alone to the index on disk, so that the next start is quick."""


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
    """One collection, made where it is missing.

    Args:
        store: Folder, or address of a Milvus; or else
        url: address of a running service.
        collection: Its name or alias.
        dim: Length of a vector.
        fingerprint: The model that makes the vectors.
        index: Index type of a new collection.
        device: Of a folder's exact segments.

    Raises:
        InputError: The collection is another model's, or out of reach; or the
            device cannot be used.
    """
    if url is not None:
        with Client(url, key=os.environ.get("KINDRED_WRITE_KEY")) as client:
            try:
                yield RemoteCollection(client, collection, dim, fingerprint, index)
            except ServiceError as error:
                raise InputError(f"{url}: {error}") from error
    elif is_address(store):
        from serve.store.milvus.store import MilvusStore  # which imports pymilvus

        token = os.environ.get(TOKEN, "")
        with MilvusStore.open(
            str(store), dim, fingerprint, index, collection=collection, token=token
        ) as milvus:
            yield milvus
    else:
        tuning = Tuning(device=str(usable_device(device)))
        with FaissStore.open(
            str(store), dim, fingerprint, index, collection=collection, tuning=tuning
        ) as folder:
            yield folder
