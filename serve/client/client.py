"""The two clients: the same operations, to wait for or to await."""

import asyncio
import functools
import inspect
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, get_args

import httpx

from models.errors import InputError
from serve.client import requests
from serve.client.encoding import blocks
from serve.client.failures import Retries
from serve.client.requests import Call
from serve.schemas import ItemDocument, NewItem

A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")
H = TypeVar("H", httpx.Client, httpx.AsyncClient)


def _blocking(operation: Callable[P, Call[A]]) -> Callable[Concatenate["Client", P], A]:
    """The method of :class:`Client` that sends an operation's call."""

    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> A:
        return self._send(operation(*args, **kwargs))

    return _described(method, operation)


def _awaiting(
    operation: Callable[P, Call[A]],
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, A]]:
    """The method of :class:`AsyncClient` that sends an operation's call."""

    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> A:
        return await self._send(operation(*args, **kwargs))

    return _described(method, operation)


def _described(method: Callable[P, R], operation: Callable[..., Call[Any]]) -> Callable[P, R]:
    """The method with the operation's name, text and signature, for ``help`` and editors."""
    functools.update_wrapper(method, operation)
    signature = inspect.signature(operation)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    (answer,) = get_args(signature.return_annotation)
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]  # inspect reads it
        parameters=[own, *signature.parameters.values()], return_annotation=answer
    )
    return method


class _Connected(Generic[H]):
    """What both clients start with: connections to a service, and when to try again."""

    _kind: type[H]

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retries: Retries = Retries(),  # noqa: B008  (frozen)
    ) -> None:
        example = "give one such as http://127.0.0.1:8000"
        try:
            address = httpx.URL(base_url)
        except (httpx.InvalidURL, TypeError) as error:
            raise InputError(f"{base_url!r} is no address of a service ({error}); {example}") from error
        if address.scheme not in ("http", "https") or not address.host:
            raise InputError(f"{base_url!r} is no address of a service; {example}")
        headers = {b"Authorization": f"Bearer {key}".encode()} if key else {}
        try:
            self._http: H = self._kind(base_url=address, headers=headers, timeout=timeout)
        except (ImportError, OSError, httpx.InvalidURL) as error:
            raise InputError(
                f"{error}; check the proxies and certificates that the environment names "
                "(HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE, SSL_CERT_DIR)"
            ) from error
        self._retries = retries


class Client(_Connected[httpx.Client]):
    """Talks to a service.

    Requests that meet overload, a restart or a broken connection are repeated after a growing pause, which is
    safe: every write of the API has the same effect once or twice.

    Args:
        base_url: Address of the service, such as ``http://127.0.0.1:8000``.
        key: Read or write key, when the service wants one.
        timeout: Seconds until a request counts as failed.
        retries: When to try again.

    Raises:
        InputError: The address is unusable, or a proxy or certificate that the environment names.

    Every method raises ServiceError when the service refuses or does not answer.
    """

    _kind = httpx.Client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _send(self, call: Call[A]) -> A:
        attempt = 0
        while True:
            attempt += 1
            try:
                return call.answer(self._http.request(**call.sending()))
            except httpx.HTTPError as error:
                pause = self._retries.before_next(attempt, error)
            time.sleep(pause)

    search_image = _blocking(requests.search_image)
    search_images = _blocking(requests.search_images)
    search_vector = _blocking(requests.search_vector)
    search_vectors = _blocking(requests.search_vectors)
    search_by_id = _blocking(requests.search_by_id)
    search_examples = _blocking(requests.search_examples)
    upsert = _blocking(requests.upsert)
    upsert_vectors = _blocking(requests.upsert_vectors)
    delete = _blocking(requests.delete)
    get = _blocking(requests.get)
    count = _blocking(requests.count)
    get_many = _blocking(requests.get_many)
    page = _blocking(requests.page)
    sample = _blocking(requests.sample)
    thumbnail = _blocking(requests.thumbnail)
    change = _blocking(requests.change)
    embed = _blocking(requests.embed)
    verify = _blocking(requests.verify)
    model = _blocking(requests.model)
    reload = _blocking(requests.reload)
    collections = _blocking(requests.collections)
    create_collection = _blocking(requests.create_collection)
    delete_collection = _blocking(requests.delete_collection)
    set_alias = _blocking(requests.set_alias)
    create_field_index = _blocking(requests.create_field_index)
    drop_field_index = _blocking(requests.drop_field_index)
    # Their earlier names, for one more version.
    create_payload_index = create_field_index
    drop_payload_index = drop_field_index
    stats = _blocking(requests.stats)
    labels = _blocking(requests.labels)

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
            on_progress: Told after each block how many items are stored durably.

        Raises:
            ServiceError: An item was refused; its text says how many are stored and which one it was.
        """
        stored = sent = 0
        for block in blocks(items):
            progress = self._send(
                requests.import_block(block, sent, collection=collection, fingerprint=fingerprint)
            )
            stored += progress.stored
            sent += progress.line
            if on_progress is not None:
                on_progress(stored)
        return stored

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


class AsyncClient(_Connected[httpx.AsyncClient]):
    """Talks to a service from asyncio; the twin of :class:`Client`, with the same arguments."""

    _kind = httpx.AsyncClient

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _send(self, call: Call[A]) -> A:
        attempt = 0
        while True:
            attempt += 1
            try:
                return call.answer(await self._http.request(**call.sending()))
            except httpx.HTTPError as error:
                pause = self._retries.before_next(attempt, error)
            await asyncio.sleep(pause)

    search_image = _awaiting(requests.search_image)
    search_images = _awaiting(requests.search_images)
    search_vector = _awaiting(requests.search_vector)
    search_vectors = _awaiting(requests.search_vectors)
    search_by_id = _awaiting(requests.search_by_id)
    search_examples = _awaiting(requests.search_examples)
    upsert = _awaiting(requests.upsert)
    upsert_vectors = _awaiting(requests.upsert_vectors)
    delete = _awaiting(requests.delete)
    get = _awaiting(requests.get)
    count = _awaiting(requests.count)
    get_many = _awaiting(requests.get_many)
    page = _awaiting(requests.page)
    sample = _awaiting(requests.sample)
    thumbnail = _awaiting(requests.thumbnail)
    change = _awaiting(requests.change)
    embed = _awaiting(requests.embed)
    verify = _awaiting(requests.verify)
    model = _awaiting(requests.model)
    reload = _awaiting(requests.reload)
    collections = _awaiting(requests.collections)
    create_collection = _awaiting(requests.create_collection)
    delete_collection = _awaiting(requests.delete_collection)
    set_alias = _awaiting(requests.set_alias)
    create_field_index = _awaiting(requests.create_field_index)
    drop_field_index = _awaiting(requests.drop_field_index)
    # Their earlier names, for one more version.
    create_payload_index = create_field_index
    drop_payload_index = drop_field_index
    stats = _awaiting(requests.stats)
    labels = _awaiting(requests.labels)

    async def import_items(
        self,
        items: Iterable[NewItem],
        *,
        collection: str | None = None,
        fingerprint: str | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> int:
        """Store any number of items with their vectors; see :meth:`Client.import_items`."""
        stored = sent = 0
        for block in blocks(items):
            progress = await self._send(
                requests.import_block(block, sent, collection=collection, fingerprint=fingerprint)
            )
            stored += progress.stored
            sent += progress.line
            if on_progress is not None:
                on_progress(stored)
        return stored

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
