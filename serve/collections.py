"""The collections that a service searches: all of a folder or a Milvus, or one store that was handed over."""

from typing import Protocol

from models.errors import InputError
from serve.store.catalogue import Catalogue
from serve.store.milvus.milvus_catalogue import MilvusCatalogue
from serve.store.types import Store, StoreMissing


class Collections(Protocol):
    """Collections by name and alias."""

    def names(self) -> list[str]:
        """Names of the collections, sorted."""

    def aliases(self) -> dict[str, str]:
        """Collections by alias."""

    def get(self, name: str) -> Store:
        """The collection of that name or alias.

        Raises:
            StoreMissing: There is none.
        """

    def opened(self, name: str) -> Store | None:
        """The same, if it is open already; answers at once."""

    def open_stores(self) -> dict[str, Store]:
        """All that are open, by name."""

    def create(self, name: str, dim: int, fingerprint: str | None, index: str | None, /) -> Store:
        """A new, empty collection.

        Raises:
            StoreError: The name is taken or unusable.
        """

    def set_alias(self, alias: str, name: str | None, /) -> None:
        """Let an alias mean a collection, or nothing (None), from now on."""

    def drop(self, name: str, /) -> None:
        """Delete a collection with all its files."""

    def close(self) -> None:
        """Close them all; a second call does nothing."""


class OneCollection:
    """A single store under one name.

    Args:
        name: What it is called.
        store: The store; closed with this.
    """

    def __init__(self, name: str, store: Store) -> None:
        self._name = name
        self._store = store

    def names(self) -> list[str]:
        """The one name."""
        return [self._name]

    def aliases(self) -> dict[str, str]:
        """There are none."""
        return {}

    def get(self, name: str) -> Store:
        """The store, by its name alone."""
        if name != self._name:
            raise StoreMissing(f"collection {name}: there is none; this service has {self._name} alone")
        return self._store

    def opened(self, name: str) -> Store | None:
        """The store, by its name alone."""
        return self._store if name == self._name else None

    def open_stores(self) -> dict[str, Store]:
        """The one store."""
        return {self._name: self._store}

    def create(self, *_: object) -> Store:
        """Refused."""
        raise self._refusal()

    def set_alias(self, *_: object) -> None:
        """Refused."""
        raise self._refusal()

    def drop(self, *_: object) -> None:
        """Refused."""
        raise self._refusal()

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _refusal(self) -> InputError:
        return InputError(
            f"this service has the collection {self._name} alone; kindred serve opens a whole folder"
        )


class FolderCollections:
    """All collections of a store folder or of a Milvus.

    Args:
        catalogue: The folder or the connection; closed with this.
    """

    def __init__(self, catalogue: Catalogue | MilvusCatalogue) -> None:
        self._catalogue = catalogue

    def names(self) -> list[str]:
        """Names of the collections, sorted."""
        return self._catalogue.collections()

    def aliases(self) -> dict[str, str]:
        """Collections by alias."""
        return self._catalogue.aliases()

    def get(self, name: str) -> Store:
        """The collection of that name or alias."""
        return self._catalogue.collection(name)

    def opened(self, name: str) -> Store | None:
        """The collection of that name or alias, if it is open already."""
        return self._catalogue.opened(name)

    def open_stores(self) -> dict[str, Store]:
        """All that are open, by name."""
        return dict(self._catalogue.open_stores())

    def create(self, name: str, dim: int, fingerprint: str | None, index: str | None) -> Store:
        """A new, empty collection."""
        return self._catalogue.create(name, dim, fingerprint, index)

    def set_alias(self, alias: str, name: str | None) -> None:
        """Let an alias mean a collection, or nothing, from now on."""
        self._catalogue.set_alias(alias, name)

    def drop(self, name: str) -> None:
        """Delete a collection with all its files."""
        self._catalogue.drop(name)

    def close(self) -> None:
        """Close all collections and release the folder."""
        self._catalogue.close()
