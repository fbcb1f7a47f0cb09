"""Models and collections, the third part of both clients."""

from collections.abc import Iterable

from serve.client import requests
from serve.client.requests import Image
from serve.client.transport import AsyncTransport, Transport
from serve.schemas import CollectionList, CollectionStats, EmbedAnswer, Model, VerifyAnswer


class Administration(Transport):
    """What the model says of images, and what the service holds."""

    def embed(self, images: Iterable[Image]) -> EmbedAnswer:
        """Vectors of images."""
        return self._send(requests.embed(images))

    def verify(self, first: Image, second: Image, *, false_accept_rate: str | None = None) -> VerifyAnswer:
        """Whether two images show the same, by the model's calibrated threshold."""
        return self._send(requests.verify(first, second, false_accept_rate))

    def model(self) -> Model:
        """What embeds images at the service."""
        return self._send(requests.model())

    def reload(self, alias: str | None = None, collection: str | None = None) -> Model:
        """Have the service take its model's folder anew, and move an alias with it."""
        return self._send(requests.reload(alias, collection))

    def collections(self) -> CollectionList:
        """All collections, aliases, and the default one."""
        return self._send(requests.collections())

    def create_collection(
        self,
        name: str,
        *,
        dim: int | None = None,
        fingerprint: str | None = None,
        index: str | None = None,
    ) -> CollectionStats:
        """A new, empty collection; without ``dim`` it is for the loaded model."""
        return self._send(requests.create_collection(name, dim, fingerprint, index))

    def delete_collection(self, name: str) -> CollectionList:
        """Delete a collection with all its files; refused while it is in use."""
        return self._send(requests.delete_collection(name))

    def set_alias(self, alias: str, collection: str | None) -> CollectionList:
        """Let an alias mean a collection from now on, or nothing."""
        return self._send(requests.set_alias(alias, collection))

    def create_payload_index(self, field: str, *, collection: str | None = None) -> CollectionStats:
        """Make filters on "label" or "metadata.NAME" fast."""
        return self._send(requests.create_payload_index(field, collection))

    def drop_payload_index(self, field: str, *, collection: str | None = None) -> CollectionStats:
        """Undo :meth:`create_payload_index`."""
        return self._send(requests.drop_payload_index(field, collection))

    def stats(self, *, collection: str | None = None) -> CollectionStats:
        """A collection's figures."""
        return self._send(requests.stats(collection))

    def labels(self, *, collection: str | None = None) -> dict[str, int]:
        """Up to 1000 labels with their number of items, most frequent first."""
        return self._send(requests.labels(collection)).labels


class AsyncAdministration(AsyncTransport):
    """The twin of :class:`Administration` to await."""

    async def embed(self, images: Iterable[Image]) -> EmbedAnswer:
        """Vectors of images."""
        return await self._send(requests.embed(images))

    async def verify(
        self, first: Image, second: Image, *, false_accept_rate: str | None = None
    ) -> VerifyAnswer:
        """Whether two images show the same, by the model's calibrated threshold."""
        return await self._send(requests.verify(first, second, false_accept_rate))

    async def model(self) -> Model:
        """What embeds images at the service."""
        return await self._send(requests.model())

    async def reload(self, alias: str | None = None, collection: str | None = None) -> Model:
        """Have the service take its model's folder anew, and move an alias with it."""
        return await self._send(requests.reload(alias, collection))

    async def collections(self) -> CollectionList:
        """All collections, aliases, and the default one."""
        return await self._send(requests.collections())

    async def create_collection(
        self,
        name: str,
        *,
        dim: int | None = None,
        fingerprint: str | None = None,
        index: str | None = None,
    ) -> CollectionStats:
        """A new, empty collection; without ``dim`` it is for the loaded model."""
        return await self._send(requests.create_collection(name, dim, fingerprint, index))

    async def delete_collection(self, name: str) -> CollectionList:
        """Delete a collection with all its files; refused while it is in use."""
        return await self._send(requests.delete_collection(name))

    async def set_alias(self, alias: str, collection: str | None) -> CollectionList:
        """Let an alias mean a collection from now on, or nothing."""
        return await self._send(requests.set_alias(alias, collection))

    async def create_payload_index(self, field: str, *, collection: str | None = None) -> CollectionStats:
        """Make filters on "label" or "metadata.NAME" fast."""
        return await self._send(requests.create_payload_index(field, collection))

    async def drop_payload_index(self, field: str, *, collection: str | None = None) -> CollectionStats:
        """Undo :meth:`create_payload_index`."""
        return await self._send(requests.drop_payload_index(field, collection))

    async def stats(self, *, collection: str | None = None) -> CollectionStats:
        """A collection's figures."""
        return await self._send(requests.stats(collection))

    async def labels(self, *, collection: str | None = None) -> dict[str, int]:
        """Up to 1000 labels with their number of items, most frequent first."""
        return (await self._send(requests.labels(collection))).labels
