"""The synchronous client."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar

import httpx

from serve.client import requests
from serve.client.errors import ServiceError, error_of
from serve.client.requests import Call, Image, Vector
from serve.client.retries import Retries
from serve.schemas import (
    BatchAnswer,
    CollectionList,
    CollectionStats,
    EmbedAnswer,
    ItemDocument,
    Model,
    NewItem,
    SearchAnswer,
    VerifyAnswer,
)
from serve.store.protocol import ItemId

A = TypeVar("A")


class Client:
    """Talks to a service.

    Requests that meet overload, a restart or a broken connection are repeated after a growing pause, which is
    safe: every write of the API has the same effect once or twice.

    Args:
        base_url: Address of the service, such as ``http://127.0.0.1:8000``.
        key: Read or write key, when the service wants one.
        timeout: Seconds until a request counts as failed.
        retries: When to try again.

    Every method raises ServiceError when the service refuses or does not answer.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retries: Retries = Retries(),  # noqa: B008  (frozen)
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=timeout)
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def search_image(
        self,
        image: Image,
        k: int = 10,
        *,
        label: str | None = None,
        where: Mapping[str, Any] | None = None,
        min_similarity: float | None = None,
        exclude: Sequence[ItemId] = (),
        group_by: Literal["label"] | None = None,
        exact: bool = False,
        collection: str | None = None,
    ) -> SearchAnswer:
        """The nearest neighbours of an image.

        Args:
            image: Encoded bytes, or a file.
            k: Most neighbours.
            label: Only items with this label.
            where: Only items that pass this filter, such as ``{"metadata.year": {"gte": 1900}}``.
            min_similarity: Drop neighbours below this cosine.
            exclude: Ids that are never neighbours.
            group_by: "label" keeps the best item of each label.
            exact: Scan exactly instead of asking an approximate index.
            collection: Collection or alias; the service's default when absent.
        """
        fields = requests.options(
            k=k,
            label=label,
            filter=where,
            min_similarity=min_similarity,
            exclude=list(exclude),
            group_by=group_by,
            exact=exact,
            collection=collection,
        )
        return self._send(requests.search_image(image, fields))

    def search_images(
        self, images: Iterable[Image], k: int = 10, *, collection: str | None = None
    ) -> BatchAnswer:
        """The nearest neighbours of several images at once."""
        return self._send(requests.search_images(images, requests.options(k=k, collection=collection)))

    def search_vector(
        self,
        vector: Vector,
        k: int = 10,
        *,
        label: str | None = None,
        where: Mapping[str, Any] | None = None,
        min_similarity: float | None = None,
        exclude: Sequence[ItemId] = (),
        group_by: Literal["label"] | None = None,
        exact: bool = False,
        collection: str | None = None,
        fingerprint: str | None = None,
    ) -> SearchAnswer:
        """The nearest neighbours of a vector of the collection's model; see :meth:`search_image`."""
        given = {
            "k": k,
            "label": label,
            "filter": where,
            "min_similarity": min_similarity,
            "exclude": list(exclude),
            "group_by": group_by,
            "exact": exact,
            "collection": collection,
            "fingerprint": fingerprint,
        }
        return self._send(requests.search_vector(vector, given))

    def search_by_id(
        self,
        item_id: ItemId,
        k: int = 10,
        *,
        label: str | None = None,
        where: Mapping[str, Any] | None = None,
        collection: str | None = None,
    ) -> SearchAnswer:
        """The nearest neighbours of a stored item, itself left out."""
        fields = requests.options(k=k, label=label, filter=where, collection=collection)
        return self._send(requests.search_by_id(item_id, fields))

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
        call = requests.upsert_image(image, item_id, label, metadata or {}, collection)
        return (self._send(call)).ids[0]

    def upsert_vectors(
        self, items: Iterable[NewItem], *, collection: str | None = None, fingerprint: str | None = None
    ) -> int:
        """Store items with their vectors, all or none; returns how many."""
        return (self._send(requests.upsert_vectors(items, collection, fingerprint))).stored

    def delete(
        self,
        ids: Iterable[ItemId] = (),
        *,
        where: Mapping[str, Any] | None = None,
        erase: bool = False,
        collection: str | None = None,
    ) -> int:
        """Delete by id, by filter or both; ``erase`` removes every byte. Returns how many went."""
        return (self._send(requests.delete(ids, where, collection, erase=erase))).deleted

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

    def thumbnail(self, item_id: ItemId, *, collection: str | None = None) -> bytes:
        """An item's thumbnail, an encoded image; status 404 where there is none."""
        return self._send(requests.thumbnail(item_id, collection))

    def change(
        self, item_id: ItemId, changes: Mapping[str, Any], *, collection: str | None = None
    ) -> ItemDocument:
        """Change "label" and "metadata" in part; None removes a field of the metadata."""
        return self._send(requests.change(item_id, changes, collection))

    def verify(self, first: Image, second: Image, *, false_accept_rate: str | None = None) -> VerifyAnswer:
        """Whether two images show the same, by the model's calibrated threshold."""
        return self._send(requests.verify(first, second, false_accept_rate))

    def embed(self, images: Iterable[Image]) -> EmbedAnswer:
        """Vectors of images."""
        return self._send(requests.embed(images))

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

    def set_alias(self, alias: str, collection: str | None) -> CollectionList:
        """Let an alias mean a collection from now on, or nothing."""
        return self._send(requests.set_alias(alias, collection))

    def reload(self, alias: str | None = None, collection: str | None = None) -> Model:
        """Have the service take its model's folder anew, and move an alias with it."""
        return self._send(requests.reload(alias, collection))

    def model(self) -> Model:
        """What embeds images at the service."""
        return self._send(requests.model())

    def _send(self, call: Call[A]) -> A:
        attempt = 1
        while True:
            response = None
            try:
                response = self._http.request(**call.sending())
                if response.status_code < 400:
                    return requests.answer_of(call, response.content)
                failure = error_of(response)
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
                failure = ServiceError(0, "unreachable", f"{self._http.base_url}: no answer ({reason})")
            pause = self._retries.pause(attempt, response)
            if pause is None:
                raise failure
            time.sleep(pause)
            attempt += 1
