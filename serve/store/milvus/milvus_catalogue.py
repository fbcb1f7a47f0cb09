"""Several collections of one Milvus, and aliases that switch between them atomically."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from serve.store.items import check_alias, check_name, check_removable
from serve.store.milvus.engine import Engine, milvus_name, our_name, parse_address
from serve.store.milvus.schema import create_collection, open_collection
from serve.store.milvus.store import Consistency, MilvusStore
from serve.store.types import StoreError

# Seconds for which an alias that another process moved may still mean the old collection here.
_FRESH_SECONDS = 2.0


class MilvusCatalogue:
    """Connects to a Milvus and opens its collections, each once.

    A service calls `collection` for every request, so it answers from memory; changes that other processes
    made to aliases are read in the background, at most every two seconds.

    Arguments are those of `MilvusStore.open`, and so are the errors of connecting.
    """

    def __init__(
        self, address: str, *, token: str = "", timeout: float = 30.0, consistency: Consistency = "Strong"
    ) -> None:
        self._engine = Engine(parse_address(address), token=token, timeout=timeout)
        self._consistency = consistency
        self._stores: dict[str, MilvusStore] = {}
        self._known: dict[str, str] = {}
        self._looked = -_FRESH_SECONDS
        self._lock = threading.RLock()
        self._background = ThreadPoolExecutor(1, "milvus-aliases")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def collections(self) -> list[str]:
        """Names of the collections, sorted."""
        names = map(our_name, self._engine.call("list_collections"))
        return sorted(name for name in names if name is not None)

    def aliases(self) -> dict[str, str]:
        """Collections by alias."""
        found: dict[str, str] = {}
        for name in self.collections():
            # Not every version takes the database from the connection.
            told = self._engine.call(
                "list_aliases",
                collection_name=milvus_name(name),
                db_name=self._engine.address.database,
            )
            for alias in map(our_name, told["aliases"]):
                if alias is not None:
                    found[alias] = name
        with self._lock:
            self._known, self._looked = found, time.monotonic()
        return dict(sorted(found.items()))

    def collection(self, name: str = "default") -> MilvusStore:
        """The collection of that name or alias; see `Catalogue.collection`."""
        check_name(name)
        store = self.opened(name)
        if store is not None:
            return store
        with self._lock:
            definition = open_collection(self._engine, name, None, None, None)
            if definition.name != name:
                self._known[name] = definition.name
            return self._stores.setdefault(definition.name, MilvusStore(self._engine, definition))

    def opened(self, name: str) -> MilvusStore | None:
        """The collection of that name or alias if it is open; never blocks."""
        if time.monotonic() - self._looked > _FRESH_SECONDS:
            self._looked = time.monotonic()
            self._background.submit(self._look_again)
        return self._stores.get(self._known.get(name, name))

    def open_stores(self) -> dict[str, MilvusStore]:
        """The collections that are open, by name."""
        return dict(self._stores)

    def create(
        self, name: str, dim: int, fingerprint: str | None = None, index: str | None = None
    ) -> MilvusStore:
        """A new, empty collection; see `Catalogue.create` and `create_collection`."""
        with self._lock:
            # Milvus resolves aliases here as well.
            if self._engine.call("has_collection", milvus_name(name)):
                raise StoreError(f"{name!r} exists already; choose another name")
            definition = create_collection(self._engine, name, dim, fingerprint, index, self._consistency)
            self._stores[name] = MilvusStore(self._engine, definition)
            return self._stores[name]

    def set_alias(self, alias: str, name: str | None) -> None:
        """Points an alias at a collection, or removes it (None), atomically."""
        with self._lock:
            check_alias(alias, name, self.collections(), self._engine.address.uri)
            aliases = self.aliases()
            if name is None:
                if alias in aliases:
                    self._engine.call("drop_alias", milvus_name(alias))
                self._known.pop(alias, None)
                return
            method = "alter_alias" if alias in aliases else "create_alias"
            self._engine.call(method, milvus_name(name), milvus_name(alias))
            self._known[alias] = name

    def drop(self, name: str) -> None:
        """Deletes a collection with all its items; see `Catalogue.drop`."""
        with self._lock:
            check_removable(name, self.collections(), self.aliases(), self._engine.address.uri)
            if name in self._stores:
                self._stores.pop(name).close()
            self._engine.call("drop_collection", milvus_name(name))

    def close(self) -> None:
        """Closes every collection and the connection; a second call does nothing."""
        self._background.shutdown()
        with self._lock:
            while self._stores:
                self._stores.popitem()[1].close()
        self._engine.close()

    def _look_again(self) -> None:
        """Reads aliases that other processes moved, and closes collections that they dropped."""
        try:
            self.aliases()
            names = set(self.collections())
        except StoreError:  # unreachable at the moment: keep the known aliases
            return
        with self._lock:
            for gone in self._stores.keys() - names:
                self._stores.pop(gone).close()
