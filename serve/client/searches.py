"""Searching, the first part of both clients."""

from collections.abc import Iterable, Sequence
from typing import Unpack

from serve.client import requests
from serve.client.requests import Image, Options, Vector
from serve.client.transport import AsyncTransport, Transport
from serve.schemas import BatchAnswer, SearchAnswer
from serve.store.protocol import ItemId


class Searches(Transport):
    """Ways to search; all take the :class:`serve.client.requests.Options`."""

    def search_image(self, image: Image, k: int = 10, **options: Unpack[Options]) -> SearchAnswer:
        """The nearest neighbours of an image, encoded bytes or a file."""
        return self._send(requests.search_image(image, k, options))

    def search_images(self, images: Iterable[Image], k: int = 10, **options: Unpack[Options]) -> BatchAnswer:
        """The nearest neighbours of several images at once; an unusable one gives an error in its place."""
        return self._send(requests.search_images(images, k, options))

    def search_vector(
        self, vector: Vector, k: int = 10, *, fingerprint: str | None = None, **options: Unpack[Options]
    ) -> SearchAnswer:
        """The nearest neighbours of a vector; another model's ``fingerprint`` is refused."""
        return self._send(requests.search_vector(vector, k, fingerprint, options))

    def search_vectors(
        self,
        vectors: Iterable[Vector],
        k: int = 10,
        *,
        fingerprint: str | None = None,
        **options: Unpack[Options],
    ) -> BatchAnswer:
        """The nearest neighbours of several vectors of the same model at once."""
        return self._send(requests.search_vectors(vectors, k, fingerprint, options))

    def search_by_id(self, item_id: ItemId, k: int = 10, **options: Unpack[Options]) -> SearchAnswer:
        """The nearest neighbours of a stored item, itself left out."""
        return self._send(requests.search_by_id(item_id, k, options))

    def search_examples(
        self,
        positives: Sequence[ItemId],
        negatives: Sequence[ItemId] = (),
        k: int = 10,
        **options: Unpack[Options],
    ) -> SearchAnswer:
        """Items like the positives and unlike the negatives, both ids of stored items."""
        return self._send(requests.search_examples(positives, negatives, k, options))


class AsyncSearches(AsyncTransport):
    """The twin of :class:`Searches` to await."""

    async def search_image(self, image: Image, k: int = 10, **options: Unpack[Options]) -> SearchAnswer:
        """The nearest neighbours of an image, encoded bytes or a file."""
        return await self._send(requests.search_image(image, k, options))

    async def search_images(
        self, images: Iterable[Image], k: int = 10, **options: Unpack[Options]
    ) -> BatchAnswer:
        """The nearest neighbours of several images at once; an unusable one gives an error in its place."""
        return await self._send(requests.search_images(images, k, options))

    async def search_vector(
        self, vector: Vector, k: int = 10, *, fingerprint: str | None = None, **options: Unpack[Options]
    ) -> SearchAnswer:
        """The nearest neighbours of a vector; another model's ``fingerprint`` is refused."""
        return await self._send(requests.search_vector(vector, k, fingerprint, options))

    async def search_vectors(
        self,
        vectors: Iterable[Vector],
        k: int = 10,
        *,
        fingerprint: str | None = None,
        **options: Unpack[Options],
    ) -> BatchAnswer:
        """The nearest neighbours of several vectors of the same model at once."""
        return await self._send(requests.search_vectors(vectors, k, fingerprint, options))

    async def search_by_id(self, item_id: ItemId, k: int = 10, **options: Unpack[Options]) -> SearchAnswer:
        """The nearest neighbours of a stored item, itself left out."""
        return await self._send(requests.search_by_id(item_id, k, options))

    async def search_examples(
        self,
        positives: Sequence[ItemId],
        negatives: Sequence[ItemId] = (),
        k: int = 10,
        **options: Unpack[Options],
    ) -> SearchAnswer:
        """Items like the positives and unlike the negatives, both ids of stored items."""
        return await self._send(requests.search_examples(positives, negatives, k, options))
