"""``/v1/search``: by image, by images, by vectors, by stored item, by examples."""

from typing import Any

import msgspec
import numpy as np
from fastapi import APIRouter, Depends
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from models.preprocess import ImageError
from serve.api.bodies import fields_as, json_as, read_images, read_json, read_json_bytes
from serve.api.context import Stopwatch, check_batch, check_options, service_of
from serve.api.documents import answers, form_fields, image_body, json_body, query_parameters, reply
from serve.api.paths import ITEM
from serve.auth import requires
from serve.problems import Problem
from serve.schemas import BatchAnswer, ExampleSearch, SearchAnswer, SearchOptions, VectorSearch, parse_id
from serve.searching import is_plain
from serve.service import Service
from serve.store.protocol import SearchResult, Store

router = APIRouter(prefix="/v1", tags=["search"], dependencies=[Depends(requires(write=False))])

VECTOR_PATH = "/v1/search/vector"
_OPTIONS = form_fields(SearchOptions)
_encoder = msgspec.json.Encoder()


def _answer(
    request: Request, options: SearchOptions, hits: object, plan: object, watch: Stopwatch
) -> Response:
    service = service_of(request)
    # Hits and plans are dataclasses whose fields are those of the schema's structs; msgspec encodes them as
    # they are.
    return reply(
        {
            "hits": hits,
            "plan": plan,
            "timings_ms": watch.finish(service),
            "collection": options.collection or service.settings.collection,
        }
    )


@router.post(
    "/search",
    summary="Search by image",
    responses=answers(SearchAnswer),
    openapi_extra=image_body(_OPTIONS),
)
async def search_image(request: Request) -> Response:
    """Embed an image and return its nearest neighbours: `curl -F image=@photo.jpg -F k=5 …/v1/search`."""
    service = service_of(request)
    watch = Stopwatch()
    with service.admission.admit() as place:
        form = await read_images(request, "image")
        options = fields_as(form.fields, SearchOptions)
        check_options(options, service)
        store = service.store(options.collection)
        watch.restart()
        place.start()
        embedded = await service.pipeline.embed(form.files["image"][0])
        watch.record("decode", embedded.decode_ms)
        watch.record("network", embedded.network_ms)
        with watch.stage("search"):
            result = await service.threads.search(store, embedded.vector, options, embedded.fingerprint)
    return _answer(request, options, result.hits[0], result.plan, watch)


@router.post(
    "/search/batch",
    summary="Search by several images",
    responses=answers(BatchAnswer),
    openapi_extra=image_body(_OPTIONS, many=True),
)
async def search_images(request: Request) -> Response:
    """Embed several images (repeat the file field `image`); an unusable one gives an error in its place."""
    service = service_of(request)
    watch = Stopwatch()
    with service.admission.admit() as place:
        form = await read_images(request, "image")
        options = fields_as(form.fields, SearchOptions)
        check_options(options, service)
        check_batch(len(form.files["image"]), service, "images")
        store = service.store(options.collection)
        watch.restart()
        place.start(len(form.files["image"]))
        fingerprint = service.bundle.fingerprint
        with watch.stage("embed"):
            embedded = await service.pipeline.embed_many(form.files["image"])
        vectors = [image.vector for image in embedded if not isinstance(image, ImageError)]
        plan = None
        hits: list[object] = []
        if vectors:
            with watch.stage("search"):
                found = await service.threads.search(store, np.stack(vectors), options, fingerprint)
            hits, plan = list(found.hits), found.plan
        remaining = iter(hits)
        results = [
            {"error": str(image)} if isinstance(image, ImageError) else {"hits": next(remaining)}
            for image in embedded
        ]
    return reply(
        {
            "results": results,
            "plan": plan,
            "timings_ms": watch.finish(service),
            "collection": options.collection or service.settings.collection,
        }
    )


@router.post(
    "/search/vector",
    summary="Search by vector, or by several",
    responses=answers(SearchAnswer, BatchAnswer),
    openapi_extra=json_body(VectorSearch),
)
async def search_vector(request: Request) -> Response:
    """With `vector` the answer is as for an image, with `vectors` as for a batch of images."""
    body = await read_json_bytes(request)
    return Response(await answer_vector(service_of(request), b"", body), media_type="application/json")


async def answer_vector(service: Service, _query: bytes, body: bytes) -> bytes:
    """The JSON answer to a search by vector, or by several.

    Args:
        service: The service.
        body: A `VectorSearch` as JSON.

    Raises:
        Problem: 400 or 422, the body cannot be used.
        StoreMissing: There is no such collection.
    """
    watch = Stopwatch()
    options, store, queries = _understood(service, body)
    if options.vector is not None:
        queries = queries[0]
    with watch.stage("search"):
        result = await service.threads.search(store, queries, options, options.fingerprint)
    return _found(service, options, result, watch)


def answer_vector_at_once(service: Service, _query: bytes, body: bytes) -> bytes | None:
    """As `answer_vector`, without leaving the event loop; None where the search would hold it up."""
    watch = Stopwatch()
    options, store, queries = _understood(service, body)
    if (
        options.vector is None
        or not is_plain(options)
        or options.fingerprint not in (None, store.fingerprint)
    ):
        return None
    with watch.stage("search"):
        result = service.threads.at_once(store, queries[0], options.k, with_metadata=True)
    return None if result is None else _found(service, options, result, watch)


def _understood(service: Service, body: bytes) -> tuple[VectorSearch, Store, NDArray[np.float32]]:
    """What is asked, of which collection, and the vectors of shape (n, dim)."""
    options = json_as(body, VectorSearch)
    check_options(options, service)
    if (options.vector is None) == (options.vectors is None):
        raise Problem(422, "invalid", "body: give either vector or vectors")
    check_batch(len(options.vectors or ()), service, "vectors")
    queries = as_vectors([options.vector] if options.vector is not None else options.vectors or [])
    return options, service.store(options.collection), queries


def _found(service: Service, options: VectorSearch, result: SearchResult, watch: Stopwatch) -> bytes:
    if options.vector is not None:
        found: dict[str, Any] = {"hits": result.hits[0]}
    else:
        found = {"results": [{"hits": hits} for hits in result.hits]}
    return _encoder.encode(
        {
            **found,
            "plan": result.plan,
            "timings_ms": watch.finish(service),
            "collection": options.collection or service.settings.collection,
        }
    )


@router.post(
    "/search/examples",
    summary="Search by several positive and negative examples",
    responses=answers(SearchAnswer),
    openapi_extra=json_body(ExampleSearch),
)
async def search_examples(request: Request) -> Response:
    """Items like the `positives` and unlike the `negatives`, both ids of stored items."""
    service = service_of(request)
    watch = Stopwatch()
    options = await read_json(request, ExampleSearch)
    check_options(options, service)
    check_batch(len(options.positives) + len(options.negatives), service, "examples")
    store = service.store(options.collection)
    with watch.stage("search"):
        result = await service.threads.search_examples(store, options.positives, options.negatives, options)
    return _answer(request, options, result.hits[0], result.plan, watch)


@router.get(
    f"{ITEM}/similar",
    summary="Search by a stored item",
    responses=answers(SearchAnswer),
    openapi_extra=query_parameters(_OPTIONS),
)
async def search_similar(request: Request, item_id: str) -> Response:
    """The neighbours of an item that is stored, itself left out."""
    service = service_of(request)
    watch = Stopwatch()
    options = fields_as(dict(request.query_params), SearchOptions)
    check_options(options, service)
    store = service.store(options.collection)
    with watch.stage("search"):
        result = await service.threads.search_examples(store, [parse_id(item_id)], [], options)
    return _answer(request, options, result.hits[0], result.plan, watch)


def as_vectors(rows: list[list[float]]) -> NDArray[np.float32]:
    """Rows of numbers as float32 of shape (n, dim).

    Raises:
        Problem: 422, the rows are empty, of unequal length, or beyond float32.
    """
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or 0 in lengths:
        raise Problem(422, "invalid", "vectors: give at least one, none empty, all of the same length")
    with np.errstate(over="ignore"):
        vectors = np.asarray(rows, dtype=np.float32)
    if not np.isfinite(vectors).all():
        raise Problem(422, "not-finite", "vectors: a number is beyond float32's range; send finite numbers")
    return vectors
