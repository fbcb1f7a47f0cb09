"""The destination of ``kindred index``: a store's folder, a Milvus server, or a running service."""

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


class StoredItem(Protocol):
    """An item of a store or of a service."""

    @property
    def id(self) -> ItemId:
        """Its id."""


class Target(Protocol):
    """A store, or a collection of a running service, that can be filled."""

    def get(self, ids: Sequence[ItemId], /) -> Sequence[object | None]:
        """Items in the order of ``ids``; None for each that is missing."""

    def upsert(self, items: Iterable[Item], *, fingerprint: str | None = None) -> int:
        """Store items and return their number."""

    def delete(self, ids: Iterable[ItemId], /) -> int:
        """Delete items and return how many there were."""

    def scan(self) -> Iterator[StoredItem]:
        """All items."""

    def count(self) -> int:
        """Number of items."""

    def flush(self) -> None:
        """Write the index in memory to the disk, so that the next start is fast."""


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

    Args:
        store: Folder, or address of a Milvus server; exclusive with ``url``.
        url: Address of a running service.
        collection: Its name or alias.
        dim: Length of a vector.
        fingerprint: Of the model that makes the vectors.
        index: Index type of a new collection.
        device: Where exact segments of a folder are searched.

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
        from serve.store.milvus.store import MilvusStore  # imports pymilvus

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
