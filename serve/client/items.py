"""Adding, reading, changing and deleting items, the second part of both clients."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from serve.client import importing, requests
from serve.client.errors import ServiceError
from serve.client.requests import Image
from serve.client.transport import AsyncTransport, Transport
from serve.schemas import ItemDocument, ItemPage, NewItem
from serve.store.protocol import ItemId


class Items(Transport):
    """Items of a collection, the service's default one when none is named."""

    def upsert(
        self,
        image: Image,
        item_id: ItemId | None = None,
        *,
        label: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        collection: str | None = None,
    ) -> ItemId:
        """Embed and store an image; returns its id, made from its content when none is given."""
        return self._send(requests.upsert_image(image, item_id, label, metadata or {}, collection)).ids[0]

    def upsert_vectors(
        self, items: Iterable[NewItem], *, collection: str | None = None, fingerprint: str | None = None
    ) -> int:
        """Store items with their vectors, all or none; returns how many."""
        return self._send(requests.upsert_vectors(items, collection, fingerprint)).stored

    def import_items(
        self,
        items: Iterable[NewItem],
        *,
        collection: str | None = None,
        fingerprint: str | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> int:
        """Store any number of items with their vectors, read from ``items`` as they are sent.

        They go in blocks of some megabytes, which bounds the memory. A block that meets a restart or a broken
        connection is sent again, which changes nothing that was stored. Returns how many were stored.

        Args:
            items: What to store.
            collection: Where.
            fingerprint: The model that made the vectors; another model's collection refuses them.
            on_progress: Told after each block how many items are stored for good.

        Raises:
            ServiceError: An item was refused; its text says how many are stored and which one it was.
        """
        stored = sent = 0
        for block in importing.blocks(items):
            answer = self._send(requests.import_block(block, collection, fingerprint))
            progress = importing.progress_of(answer, sent)
            stored += progress.stored
            sent += progress.line
            if on_progress is not None:
                on_progress(stored)
        return stored

    def delete(
        self,
        ids: Iterable[ItemId] = (),
        *,
        where: Mapping[str, Any] | None = None,
        erase: bool = False,
        collection: str | None = None,
    ) -> int:
        """Delete by id, by filter or both; ``erase`` removes every byte. Returns how many went."""
        return self._send(requests.delete(ids, where, collection, erase=erase)).deleted

    def get(
        self, item_id: ItemId, *, with_vector: bool = False, collection: str | None = None
    ) -> ItemDocument | None:
        """One item, or None where there is none of that id."""
        try:
            return self._send(requests.get(item_id, collection, with_vector=with_vector))
        except ServiceError as error:
            if error.code == "item-missing":
                return None
            raise

    def count(self, *, where: Mapping[str, Any] | None = None, collection: str | None = None) -> int:
        """How many items pass the filter; all without one."""
        return (self._send(requests.count(where, collection))).count

    def get_many(
        self, ids: Sequence[ItemId], *, with_vectors: bool = False, collection: str | None = None
    ) -> list[ItemDocument | None]:
        """Items in the order of ``ids``, None where there is none."""
        return self._send(requests.get_many(ids, collection, with_vectors=with_vectors)).items

    def page(
        self,
        after: int | None = None,
        limit: int = 100,
        *,
        label: str | None = None,
        where: Mapping[str, Any] | None = None,
        with_vectors: bool = False,
        collection: str | None = None,
    ) -> ItemPage:
        """Some items in the order of their last write; ``next`` is the ``after`` of the following page."""
        return self._send(requests.page(after, limit, label, where, collection, with_vectors=with_vectors))

    def scan(
        self,
        *,
        label: str | None = None,
        where: Mapping[str, Any] | None = None,
        with_vectors: bool = False,
        collection: str | None = None,
    ) -> Iterator[ItemDocument]:
        """All items, page by page; one that is written meanwhile may come twice."""
        after: int | None = None
        while True:
            page = self.page(
                after, 500, label=label, where=where, with_vectors=with_vectors, collection=collection
            )
            yield from page.items
            if page.next is None:
                return
            after = page.next

    def sample(
        self, limit: int = 100, *, with_vectors: bool = False, collection: str | None = None
    ) -> list[ItemDocument]:
        """Items drawn at random from the whole collection, of as many labels as there are."""
        return (self._send(requests.sample(limit, collection, with_vectors=with_vectors))).items

    def thumbnail(self, item_id: ItemId, *, collection: str | None = None) -> bytes:
        """An item's thumbnail, an encoded image; status 404 where there is none."""
        return self._send(requests.thumbnail(item_id, collection))

    def change(
        self, item_id: ItemId, changes: Mapping[str, Any], *, collection: str | None = None
    ) -> ItemDocument:
        """Change "label" and "metadata" in part; None removes a field of the metadata."""
        return self._send(requests.change(item_id, changes, collection))


class AsyncItems(AsyncTransport):
    """The twin of :class:`Items` to await."""

    async def upsert(
        self,
        image: Image,
        item_id: ItemId | None = None,
        *,
        label: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        collection: str | None = None,
    ) -> ItemId:
        """Embed and store an image; returns its id, made from its content when none is given."""
        call = requests.upsert_image(image, item_id, label, metadata or {}, collection)
        return (await self._send(call)).ids[0]

    async def upsert_vectors(
        self, items: Iterable[NewItem], *, collection: str | None = None, fingerprint: str | None = None
    ) -> int:
        """Store items with their vectors, all or none; returns how many."""
        return (await self._send(requests.upsert_vectors(items, collection, fingerprint))).stored

    async def import_items(
        self,
        items: Iterable[NewItem],
        *,
        collection: str | None = None,
        fingerprint: str | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> int:
        """Store any number of items with their vectors; see :meth:`Items.import_items`."""
        stored = sent = 0
        for block in importing.blocks(items):
            answer = await self._send(requests.import_block(block, collection, fingerprint))
            progress = importing.progress_of(answer, sent)
            stored += progress.stored
            sent += progress.line
            if on_progress is not None:
                on_progress(stored)
        return stored

    async def delete(
        self,
        ids: Iterable[ItemId] = (),
        *,
        where: Mapping[str, Any] | None = None,
        erase: bool = False,
        collection: str | None = None,
    ) -> int:
        """Delete by id, by filter or both; ``erase`` removes every byte. Returns how many went."""
        return (await self._send(requests.delete(ids, where, collection, erase=erase))).deleted

    async def get(
        self, item_id: ItemId, *, with_vector: bool = False, collection: str | None = None
    ) -> ItemDocument | None:
        """One item, or None where there is none of that id."""
        try:
            return await self._send(requests.get(item_id, collection, with_vector=with_vector))
        except ServiceError as error:
            if error.code == "item-missing":
                return None
            raise

    async def count(self, *, where: Mapping[str, Any] | None = None, collection: str | None = None) -> int:
        """How many items pass the filter; all without one."""
        return (await self._send(requests.count(where, collection))).count

    async def get_many(
        self, ids: Sequence[ItemId], *, with_vectors: bool = False, collection: str | None = None
    ) -> list[ItemDocument | None]:
        """Items in the order of ``ids``, None where there is none."""
        return (await self._send(requests.get_many(ids, collection, with_vectors=with_vectors))).items

    async def page(
        self,
        after: int | None = None,
        limit: int = 100,
        *,
        label: str | None = None,
        where: Mapping[str, Any] | None = None,
        with_vectors: bool = False,
        collection: str | None = None,
    ) -> ItemPage:
        """Some items in the order of their last write; ``next`` is the ``after`` of the following page."""
        return await self._send(
            requests.page(after, limit, label, where, collection, with_vectors=with_vectors)
        )

    async def scan(
        self,
        *,
        label: str | None = None,
        where: Mapping[str, Any] | None = None,
        with_vectors: bool = False,
        collection: str | None = None,
    ) -> AsyncIterator[ItemDocument]:
        """All items, page by page; one that is written meanwhile may come twice."""
        after: int | None = None
        while True:
            page = await self.page(
                after, 500, label=label, where=where, with_vectors=with_vectors, collection=collection
            )
            for item in page.items:
                yield item
            if page.next is None:
                return
            after = page.next

    async def sample(
        self, limit: int = 100, *, with_vectors: bool = False, collection: str | None = None
    ) -> list[ItemDocument]:
        """Items drawn at random from the whole collection, of as many labels as there are."""
        return (await self._send(requests.sample(limit, collection, with_vectors=with_vectors))).items

    async def thumbnail(self, item_id: ItemId, *, collection: str | None = None) -> bytes:
        """An item's thumbnail, an encoded image; status 404 where there is none."""
        return await self._send(requests.thumbnail(item_id, collection))

    async def change(
        self, item_id: ItemId, changes: Mapping[str, Any], *, collection: str | None = None
    ) -> ItemDocument:
        """Change "label" and "metadata" in part; None removes a field of the metadata."""
        return await self._send(requests.change(item_id, changes, collection))
