"""``/v1/search``: by image, by images, by vectors, by stored item, by examples."""

import msgspec
import numpy as np
from fastapi import APIRouter, Depends
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from models.preprocess import ImageError
from serve import schemas
from serve.api.bodies import fields_as, offload, read_body, read_images, read_json, read_query
from serve.api.context import Stopwatch, check_batch, check_k, check_options, service_of
from serve.api.documents import answers, image_body, json_body, query_parameters, reply
from serve.api.routing import ITEM
from serve.auth import read_key
from serve.problems import Problem
from serve.service import Service
from serve.store.types import DEFAULT_K, SearchQuery

router = APIRouter(prefix="/v1", tags=["search"], dependencies=[Depends(read_key)])


def _answer(
    service: Service, options: schemas.SearchOptions, found: dict[str, object], plan: object, watch: Stopwatch
) -> Response:
    """The answer: what was found, with the plan and the timings."""
    # Hits and plans are structs whose fields are those of the schema's; msgspec encodes them as they are.
    return reply(
        {
            **found,
            "plan": plan,
            "timings_ms": watch.finish(service),
            "collection": options.collection or service.settings.collection,
        }
    )


@router.post(
    "/search/vector",
    summary="Search by vector, or by several",
    responses=answers(schemas.SearchAnswer, schemas.BatchAnswer),
    openapi_extra=json_body(schemas.VectorSearch),
)
async def search_vector(request: Request) -> Response:
    """With `vector` the answer is as for an image, with `vectors` as for a batch of images."""
    service = service_of(request)
    options = await read_json(request, schemas.VectorSearch)
    watch = Stopwatch()
    check_options(options, service)
    if (options.vector is None) == (options.vectors is None):
        raise Problem(422, "invalid", "body: give either vector or vectors")
    check_batch(len(options.vectors or ()), service, "vectors")
    store = await service.store(options.collection)
    query = options.query(options.fingerprint)
    alone = options.vector is not None
    rows = [options.vector] if options.vector is not None else options.vectors or []
    vectors = await offload(as_vectors, rows, size=4 * sum(map(len, rows)))
    with watch.stage("search"):
        result = await service.threads.search(store, vectors[0] if alone else vectors, query)
    found: dict[str, object] = (
        {"hits": result.hits[0]} if alone else {"results": [{"hits": hits} for hits in result.hits]}
    )
    return _answer(service, options, found, result.plan, watch)


_FLOATS = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


class RawOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Options of a raw search."""

    k: schemas.Count = DEFAULT_K
    collection: schemas.CollectionName | None = None


_DEFAULTS = RawOptions()


@router.post(
    "/raw/search",
    summary="Search by raw float32 vectors, the fastest way",
    responses=answers(schemas.RawAnswer, schemas.RawBatchAnswer),
    openapi_extra={
        "requestBody": {"required": True, "content": _FLOATS},
        **query_parameters(RawOptions),
    },
)
async def raw_search(request: Request) -> Response:
    """One or several vectors as little-endian float32; ids and similarities come back."""
    service = service_of(request)
    body = await read_body(request)
    options = read_query(request, RawOptions) if request.scope["query_string"] else _DEFAULTS
    check_k(options.k, service)
    store = await service.store(options.collection)
    size = 4 * store.dim
    if not body or len(body) % size:
        wrong = f"body: {len(body)} bytes, not a multiple of {size}"
        raise Problem(422, "dimension", f"{wrong}; a vector is {store.dim} little-endian float32")
    vectors = np.frombuffer(body, dtype="<f4").reshape(-1, store.dim)
    check_batch(len(vectors), service, "vectors")
    alone = len(vectors) == 1
    query = SearchQuery(options.k, with_metadata=False)
    result = await service.threads.search(store, vectors[0] if alone else vectors, query)
    ids = [[hit.id for hit in hits] for hits in result.hits]
    similarities = [[hit.similarity for hit in hits] for hits in result.hits]
    if alone:
        return reply(schemas.RawAnswer(ids=ids[0], similarities=similarities[0]))
    return reply(schemas.RawBatchAnswer(ids=ids, similarities=similarities))


@router.post(
    "/search",
    summary="Search by image",
    responses=answers(schemas.SearchAnswer),
    openapi_extra=image_body(schemas.SearchOptions),
)
async def search_image(request: Request) -> Response:
    """Embed an image and return its nearest neighbours: `curl -F image=@photo.jpg -F k=5 …/v1/search`."""
    service = service_of(request)
    form = await read_images(request, "image")
    watch = Stopwatch()
    options = fields_as(form.fields, schemas.SearchOptions)
    check_options(options, service)
    store = await service.store(options.collection)
    with service.admission.admit():
        embedded = await service.pipeline.embed(form.files["image"][0])
        watch.record("decode", embedded.decode_ms)
        watch.record("network", embedded.network_ms)
        with watch.stage("search"):
            query = options.query(embedded.fingerprint)
            result = await service.threads.search(store, embedded.vector, query)
    return _answer(service, options, {"hits": result.hits[0]}, result.plan, watch)


@router.post(
    "/search/batch",
    summary="Search by several images",
    responses=answers(schemas.BatchAnswer),
    openapi_extra=image_body(schemas.SearchOptions, many=True),
)
async def search_images(request: Request) -> Response:
    """Embed several images (repeat the file field `image`); an unusable one gives an error in its place."""
    service = service_of(request)
    form = await read_images(request, "image", many=True)
    watch = Stopwatch()
    options = fields_as(form.fields, schemas.SearchOptions)
    check_options(options, service)
    images = form.files["image"]
    check_batch(len(images), service, "images")
    store = await service.store(options.collection)
    with service.admission.admit(len(images)):
        fingerprint = service.bundle.fingerprint
        with watch.stage("embed"):
            embedded = await service.pipeline.embed_many(images)
        vectors = [image.vector for image in embedded if not isinstance(image, ImageError)]
        plan = None
        hits: list[object] = []
        if vectors:
            with watch.stage("search"):
                query = options.query(fingerprint)
                found = await service.threads.search(store, np.stack(vectors), query)
            hits, plan = list(found.hits), found.plan
    remaining = iter(hits)
    results = [
        {"error": str(image)} if isinstance(image, ImageError) else {"hits": next(remaining)}
        for image in embedded
    ]
    return _answer(service, options, {"results": results}, plan, watch)


@router.post(
    "/search/examples",
    summary="Search by several positive and negative examples",
    responses=answers(schemas.SearchAnswer),
    openapi_extra=json_body(schemas.ExampleSearch),
)
async def search_examples(request: Request) -> Response:
    """Items like the `positives` and unlike the `negatives`, both ids of stored items."""
    service = service_of(request)
    watch = Stopwatch()
    options = await read_json(request, schemas.ExampleSearch)
    check_options(options, service)
    check_batch(len(options.positives) + len(options.negatives), service, "examples")
    store = await service.store(options.collection)
    with watch.stage("search"):
        result = await service.threads.call(
            lambda: store.search_examples(options.positives, options.negatives, options.query())
        )
    return _answer(service, options, {"hits": result.hits[0]}, result.plan, watch)


@router.get(
    f"{ITEM}/similar",
    summary="Search by a stored item",
    responses=answers(schemas.SearchAnswer),
    openapi_extra=query_parameters(schemas.SearchOptions),
)
async def search_similar(request: Request, item_id: str) -> Response:
    """The neighbours of an item that is stored, itself left out."""
    service = service_of(request)
    watch = Stopwatch()
    options = read_query(request, schemas.SearchOptions)
    check_options(options, service)
    store = await service.store(options.collection)
    with watch.stage("search"):
        result = await service.threads.call(
            lambda: store.search_examples([schemas.parse_id(item_id)], query=options.query())
        )
    return _answer(service, options, {"hits": result.hits[0]}, result.plan, watch)


def as_vectors(rows: list[list[float]]) -> NDArray[np.float32]:
    """Rows of numbers as float32 of shape (n, dim); 422 if empty, of unequal length, or beyond float32."""
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or 0 in lengths:
        raise Problem(422, "invalid", "vectors: give at least one, none empty, all of the same length")
    with np.errstate(over="ignore"):
        vectors = np.asarray(rows, dtype=np.float32)
    if not np.isfinite(vectors).all():
        raise Problem(422, "not-finite", "vectors: a number is beyond float32's range; send finite numbers")
    return vectors
