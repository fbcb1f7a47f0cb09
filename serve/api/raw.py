"""``POST /v1/raw/search``: the shortest way from a vector to ids, beside FastAPI's.

The body is one or several vectors as raw little-endian float32, the answer their neighbours' ids and
similarities. FastAPI's routing, dependency injection and the labels' lookup are left out: they cost more than
the search itself. Requests that are in order do not even come here: see `serve.api.direct` and
`serve.api.wire`.
"""

import functools
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import numpy as np
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.limits import read_body
from serve.problems import Problem
from serve.schemas import CollectionName, Count, RawAnswer, RawBatchAnswer
from serve.service import Service
from serve.store.protocol import SearchResult, Store

PATH = "/v1/raw/search"
_HEADERS = [(b"content-type", b"application/json")]
_encoder = msgspec.json.Encoder()


class RawOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the query string of a raw search may say."""

    k: Count = 10
    collection: CollectionName | None = None


_DEFAULTS = RawOptions()


class RawSearch:
    """ASGI middleware that answers raw searches and passes everything else on.

    Args:
        app: The application inside.
        service: The service.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["kindred_route"] = PATH
        if self._service.keys.any:
            self._service.keys.check(Headers(scope=scope), write=False)
        body = await answer(self._service, scope["query_string"], await read_body(receive))
        length = str(len(body)).encode()
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [*_HEADERS, (b"content-length", length)],
            }
        )
        await send({"type": "http.response.body", "body": body})


async def answer(service: Service, query: bytes, body: bytes) -> bytes:
    """The JSON answer to a raw search.

    Args:
        service: The service.
        query: The query string.
        body: Vectors as little-endian float32.

    Raises:
        Problem: 422, the options or the vectors cannot be used.
        StoreMissing: There is no such collection.
    """
    store, k, vectors = _understood(service, query, body)
    if len(vectors) == 1:
        return _one(await service.threads.plain(store, vectors[0], k, with_metadata=False))
    result = await service.threads.call(lambda: store.search(vectors, k, with_metadata=False))
    return _encoder.encode(
        RawBatchAnswer(
            ids=[[hit.id for hit in hits] for hits in result.hits],
            similarities=[[hit.similarity for hit in hits] for hits in result.hits],
        )
    )


def answer_at_once(service: Service, query: bytes, body: bytes) -> bytes | None:
    """As `answer`, without leaving the event loop; None where the search would hold it up."""
    store, k, vectors = _understood(service, query, body)
    if len(vectors) > 1:
        return None
    result = service.threads.at_once(store, vectors[0], k, with_metadata=False)
    return None if result is None else _one(result)


def _understood(service: Service, query: bytes, body: bytes) -> tuple[Store, int, Any]:
    """The collection, k, and vectors of shape (n, dim)."""
    options = _options(query)
    if options.k > service.settings.max_k:
        raise Problem(
            422, "k-too-large", f"k {options.k}: over this service's limit of {service.settings.max_k}"
        )
    store = service.store(options.collection)
    return store, options.k, _vectors(body, store.dim, service.settings.max_batch)


def _one(result: SearchResult) -> bytes:
    (hits,) = result.hits
    return _encoder.encode(
        RawAnswer(ids=[hit.id for hit in hits], similarities=[hit.similarity for hit in hits])
    )


@functools.lru_cache(256)
def _options(query: bytes) -> RawOptions:
    if not query:
        return _DEFAULTS
    try:
        pairs = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        return msgspec.convert(pairs, RawOptions, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise Problem(422, "invalid", f"query string: {error}") from error


def _vectors(body: bytes, dim: int, max_batch: int) -> Any:
    """The body as float32 of shape (n, dim)."""
    if not body or len(body) % (4 * dim):
        raise Problem(
            422,
            "dimension",
            f"body: {len(body)} bytes, no multiple of {4 * dim}; send {dim} little-endian float32 a vector",
        )
    vectors = np.frombuffer(body, dtype="<f4").reshape(-1, dim)
    if len(vectors) > max_batch:
        raise Problem(
            422, "batch-too-large", f"{len(vectors)} vectors: over the limit of {max_batch} a request"
        )
    return vectors


def describe() -> dict[str, Any]:
    """The route's part of the OpenAPI document."""
    schema = {"type": "string", "format": "binary"}
    answer = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("RawAnswer", "RawBatchAnswer")]}
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    refusals = {401: "A key is needed", 403: "Wrong key", 404: "No such collection", 413: "Body too large"}
    return {
        "post": {
            "tags": ["search"],
            "summary": "Search by raw float32 vectors, the fastest way",
            "description": "One or several vectors as little-endian float32; ids and similarities come back.",
            "operationId": "raw_search",
            "parameters": [
                {"name": "k", "in": "query", "schema": {"type": "integer", "minimum": 1, "default": 10}},
                {"name": "collection", "in": "query", "schema": {"type": "string"}},
            ],
            "requestBody": {"required": True, "content": {"application/octet-stream": {"schema": schema}}},
            "responses": {
                "200": {"description": "Done", "content": {"application/json": {"schema": answer}}},
                "422": {"description": "A value is unusable", "content": problem},
                **{
                    str(status): {"description": text, "content": problem}
                    for status, text in refusals.items()
                },
            },
        }
    }
