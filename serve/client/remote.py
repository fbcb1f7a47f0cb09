"""A collection of a running service, with the few methods of a store that filling it needs."""

from collections.abc import Iterable, Iterator, Sequence

from serve.client.client import Client
from serve.client.failures import ServiceError
from serve.schemas import ItemDocument, NewItem
from serve.store.types import Item, ItemId


class RemoteCollection:
    """A collection behind a client with the write key; refused when it is of another model.

    A missing one is made, with ``index`` or the service's default.
    """

    def __init__(
        self, client: Client, name: str, dim: int, fingerprint: str, index: str | None = None
    ) -> None:
        self._client = client
        self._name = name
        try:
            stats = client.stats(collection=name)
        except ServiceError as error:
            if error.code != "collection-missing":
                raise
            stats = client.create_collection(name, dim=dim, fingerprint=fingerprint, index=index)
        if stats.fingerprint not in (None, fingerprint):
            raise ServiceError(
                409,
                "fingerprint",
                f"collection {name} is of model {stats.fingerprint}, these vectors of {fingerprint}; "
                "name a new collection",
            )

    def get(self, ids: Sequence[ItemId]) -> list[ItemDocument | None]:
        """Items in the order of ``ids``, None where there is none."""
        return self._client.get_many(ids, collection=self._name)

    def upsert(self, items: Iterable[Item], *, fingerprint: str | None = None) -> int:
        """Store items; returns how many."""
        new = (
            NewItem(
                id=item.id,
                vector=[] if item.vector is None else [float(value) for value in item.vector],
                label=item.label,
                metadata=dict(item.metadata),
                thumbnail=item.thumbnail,
            )
            for item in items
        )
        return self._client.import_items(new, collection=self._name, fingerprint=fingerprint)

    def delete(self, ids: Iterable[ItemId]) -> int:
        """Delete items; returns how many there were."""
        return self._client.delete(ids, collection=self._name)

    def scan(self) -> Iterator[ItemDocument]:
        """All items."""
        return self._client.scan(collection=self._name)

    def count(self) -> int:
        """Number of items."""
        return self._client.stats(collection=self._name).items or 0

    def flush(self) -> None:
        """Nothing to do: a service flushes by itself."""
