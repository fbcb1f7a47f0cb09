"""Several collections in one folder, aliases that switch between them atomically, and opening by address.

To replace a collection, build the new one beside it, then point the alias that users search by at that one.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Self

from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.milvus.engine import TOKEN, is_address
from serve.store.milvus.milvus_catalogue import MilvusCatalogue
from serve.store.milvus.store import Consistency, MilvusStore
from serve.store.store_folder import StoreFolder
from serve.store.types import StoreError

_DEFAULT = Tuning()


class Catalogue:
    """Owns a store folder and opens its collections, each once.

    Args:
        folder: The store's folder.
        create: Create what does not exist.
        read_only: Take no lock and change nothing.
        tuning: Sizes and threads of each collection.

    Raises:
        StoreLocked: Another process has the folder open.
        StoreMissing: It does not exist and `create` is false.
    """

    def __init__(
        self, folder: str | Path, *, create: bool = True, read_only: bool = False, tuning: Tuning = _DEFAULT
    ) -> None:
        self._folder = StoreFolder(Path(folder), create=create, read_only=read_only)
        self._read_only = read_only
        self._tuning = tuning
        self._open: dict[str, FaissStore] = {}
        # By name and alias, as far as used: reading the aliases from disk takes a tenth of a search. Emptied,
        # under the lock, whenever an alias may have moved.
        self._named: dict[str, FaissStore] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def collections(self) -> list[str]:
        """Names of the collections, sorted."""
        return self._folder.collections()

    def aliases(self) -> dict[str, str]:
        """Collections by alias."""
        return self._folder.aliases()

    def collection(self, name: str = "default") -> FaissStore:
        """The collection of that name or alias, the same object each time; StoreMissing if there is none."""
        known = self.opened(name)
        if known is not None:
            return known
        with self._lock:
            place = self._folder.place(name)
            if place.name not in self._open:
                self._open[place.name] = FaissStore(
                    place, create=False, read_only=self._read_only, tuning=self._tuning
                )
            if not self._read_only:  # or another process may move the alias
                self._named[name] = self._open[place.name]
            return self._open[place.name]

    def opened(self, name: str) -> FaissStore | None:
        """The collection of that name or alias if it is open; never blocks."""
        return self._named.get(name)

    def open_stores(self) -> dict[str, FaissStore]:
        """The collections that are open, by name."""
        return dict(self._open)

    def create(
        self, name: str, dim: int, fingerprint: str | None = None, index: str | None = None
    ) -> FaissStore:
        """A new, empty collection; StoreError if a collection or an alias has that name."""
        with self._lock:
            if name in self.collections() or name in self.aliases():
                raise StoreError(f"{name!r} exists already; choose another name")
            self._open[name] = FaissStore(
                self._folder.place(name),
                dim=dim,
                fingerprint=fingerprint,
                index=index,
                tuning=self._tuning,
            )
            return self._open[name]

    def set_alias(self, alias: str, name: str | None) -> None:
        """Points an alias at a collection, or removes it (None), atomically."""
        with self._lock:
            self._folder.set_alias(alias, name)
            self._named = {}

    def drop(self, name: str) -> None:
        """Deletes a collection with all its files; StoreError while an alias points at it."""
        with self._lock:
            self._folder.check_removable(name)
            self._named = {}
            if name in self._open:
                self._open.pop(name).close()
            self._folder.remove(name)

    def close(self) -> None:
        """Closes every collection and releases the folder; a second call does nothing."""
        with self._lock:
            self._named = {}
            while self._open:
                self._open.popitem()[1].close()
            self._folder.release()


def open_store(
    place: str | Path,
    dim: int | None = None,
    fingerprint: str | None = None,
    index: str | None = None,
    *,
    collection: str = "default",
    create: bool = True,
    read_only: bool = False,
) -> FaissStore | MilvusStore:
    """Opens (or creates) one collection; see `FaissStore.open` and `MilvusStore.open`.

    `place` is a folder, `file:PATH` (milvus-lite) or `milvus://HOST[:PORT][/DATABASE]`; the token of a server
    comes from the environment variable KINDRED_MILVUS_TOKEN.
    """
    if is_address(place):
        return MilvusStore.open(
            str(place),
            dim,
            fingerprint,
            index,
            collection=collection,
            create=create and not read_only,
            token=os.environ.get(TOKEN, ""),
        )
    return FaissStore.open(
        place, dim, fingerprint, index, collection=collection, create=create, read_only=read_only
    )


def open_catalogue(
    place: str | Path,
    *,
    token: str = "",
    timeout: float = 30.0,
    consistency: Consistency = "Strong",
    tuning: Tuning = _DEFAULT,
) -> Catalogue | MilvusCatalogue:
    """Opens all collections of a folder, with this tuning, or of a Milvus, with the other arguments.

    See `Catalogue` and `MilvusStore.open` for what they mean, and for errors.
    """
    if is_address(place):
        return MilvusCatalogue(str(place), token=token, timeout=timeout, consistency=consistency)
    return Catalogue(place, tuning=tuning)
