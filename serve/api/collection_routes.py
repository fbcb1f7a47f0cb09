"""``/v1/collections``, aliases, labels, statistics, the model."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import msgspec
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from serve import schemas
from serve.api.bodies import read_json, read_query
from serve.api.context import service_of
from serve.api.documents import answers, json_body, query_parameters, reply
from serve.api.item_routes import InCollection
from serve.auth import read_key, write_key
from serve.observability import log
from serve.problems import Problem
from serve.service import Service
from serve.store.types import Store, StoreError

reading = APIRouter(prefix="/v1", tags=["collections"], dependencies=[Depends(read_key)])
writing = APIRouter(prefix="/v1", tags=["collections"], dependencies=[Depends(write_key)])

_COLLECTION = query_parameters(InCollection)
# Routes of two paths: /payload-indexes is the earlier name, for one more version.
_CREATE_INDEX: dict[str, Any] = {
    "summary": "Make filters on a field fast",
    "responses": answers(schemas.CollectionStats),
    "openapi_extra": json_body(schemas.NewFieldIndex),
}
_DROP_INDEX: dict[str, Any] = {
    **_CREATE_INDEX,
    "summary": "Remove a field's index",
    "openapi_extra": query_parameters(schemas.NewFieldIndex),
}


def figures(name: str, store: Store) -> schemas.CollectionStats:
    """A collection's figures under its name."""
    stats = asdict(store.stats())
    earlier = {
        "sequence": stats["lsn"],
        "head": stats["memtable"],
        "snapshot_sequence": stats["flushed_lsn"],
        "payload_indexes": stats["field_indexes"],
    }
    return msgspec.convert({"name": name, "state": "open", **stats, **earlier}, schemas.CollectionStats)


def listing(service: Service) -> schemas.CollectionList:
    """All collections, with the figures of those that are open."""
    catalogue, default = service.catalogue, service.settings.collection
    opened = catalogue.open_stores()
    every = []
    for name in catalogue.collections():
        try:
            every.append(
                figures(name, opened[name]) if name in opened else schemas.CollectionStats(name, "closed")
            )
        except StoreError as error:  # the others are still listed
            log.warning("collection %s: %s", name, error)
            every.append(schemas.CollectionStats(name, "damaged"))
    return schemas.CollectionList(collections=every, aliases=catalogue.aliases(), default=default)


@reading.get("/collections", summary="All collections", responses=answers(schemas.CollectionList))
async def list_collections(request: Request) -> Response:
    """Collections and aliases; figures of those that are open, the others are opened when they are asked."""
    service = service_of(request)
    return reply(await service.threads.call(lambda: listing(service)))


@writing.post(
    "/collections",
    summary="Make a collection",
    status_code=201,
    responses=answers(schemas.CollectionStats, status=201),
    openapi_extra=json_body(schemas.NewCollection),
)
async def create_collection(request: Request) -> Response:
    """A new, empty collection; without `dim` it is for the loaded model's vectors."""
    service = service_of(request)
    body = await read_json(request, schemas.NewCollection)
    fingerprint = service.bundle.fingerprint if body.dim is None else body.fingerprint
    dim = service.bundle.dim if body.dim is None else body.dim
    index = body.index or service.settings.index

    def create() -> schemas.CollectionStats:
        return figures(body.name, service.catalogue.create(body.name, dim, fingerprint, index))

    return reply(await service.threads.change(create), 201)


@writing.delete(
    "/collections/{name}",
    summary="Delete a collection",
    responses=answers(schemas.CollectionList),
)
async def delete_collection(request: Request, name: str) -> Response:
    """Delete a collection with all its files; refused for the default, and while an alias points to it."""
    service = service_of(request)
    default = service.settings.collection

    def delete() -> schemas.CollectionList:
        if name in (default, service.catalogue.aliases().get(default)):
            raise Problem(
                409, "in-use", f"collection {name}: it is the default; point the alias elsewhere first"
            )
        service.catalogue.drop(name)
        return listing(service)

    return reply(await service.threads.change(delete))


@writing.post("/payload-indexes", deprecated=True, **_CREATE_INDEX)
@writing.post("/field-indexes", **_CREATE_INDEX)
async def create_field_index(request: Request) -> Response:
    """Index `label` or `metadata.NAME` for filters; one that exists is left alone."""
    service = service_of(request)
    body = await read_json(request, schemas.NewFieldIndex)
    return await _changed(service, body.collection, lambda store: store.create_field_index(body.field))


@writing.delete("/payload-indexes", deprecated=True, **_DROP_INDEX)
@writing.delete("/field-indexes", **_DROP_INDEX)
async def drop_field_index(request: Request) -> Response:
    """Filters on the field pass the same items as before; one that does not exist is no error."""
    service = service_of(request)
    fields = read_query(request, schemas.NewFieldIndex)
    return await _changed(service, fields.collection, lambda store: store.drop_field_index(fields.field))


async def _changed(service: Service, collection: str | None, change: Callable[[Store], None]) -> Response:
    """Changes a collection, and answers with its figures."""
    name = collection or service.settings.collection
    store = await service.store(name)

    def work() -> schemas.CollectionStats:
        change(store)
        return figures(name, store)

    return reply(await service.threads.change(work))


@writing.put(
    "/aliases/{alias}",
    summary="Point an alias at a collection",
    responses=answers(schemas.CollectionList),
    openapi_extra=json_body(schemas.AliasTarget),
)
async def set_alias(request: Request, alias: str) -> Response:
    """Switch an alias atomically; null removes it."""
    service = service_of(request)
    body = await read_json(request, schemas.AliasTarget)
    await service.threads.change(lambda: service.catalogue.set_alias(alias, body.collection))
    return reply(await service.threads.call(lambda: listing(service)))


@writing.post(
    "/reload",
    summary="Take over a new model without a gap",
    responses=answers(schemas.Model),
    openapi_extra=json_body(schemas.Reload),
)
async def reload(request: Request) -> Response:
    """Load the bundle's folder again; with `alias` and `collection`, the alias moves in the same step."""
    service = service_of(request)
    body = await read_json(request, schemas.Reload)
    await service.reload(body.alias, body.collection)
    return reply(_model(service))


@reading.get(
    "/stats",
    summary="A collection's figures",
    responses=answers(schemas.CollectionStats),
    openapi_extra=_COLLECTION,
)
async def stats(request: Request) -> Response:
    """Items, index, sizes on disk."""
    service = service_of(request)
    name = read_query(request, InCollection).collection or service.settings.collection
    store = await service.store(name)
    return reply(await service.threads.call(lambda: figures(name, store)))


@reading.get(
    "/labels",
    summary="A collection's labels",
    responses=answers(schemas.Labels),
    openapi_extra=_COLLECTION,
)
async def labels(request: Request) -> Response:
    """Up to 1000 labels with their number of items, most frequent first."""
    service = service_of(request)
    name = read_query(request, InCollection).collection
    store = await service.store(name)
    return reply(schemas.Labels(labels=await service.threads.call(store.labels)))


@reading.get("/model", summary="The model", responses=answers(schemas.Model))
async def model(request: Request) -> Response:
    """What embeds images here: fingerprint, input, calibrated thresholds and training figures."""
    return reply(_model(service_of(request)))


def _model(service: Service) -> schemas.Model:
    bundle = service.bundle
    return schemas.Model(
        fingerprint=bundle.fingerprint,
        dim=bundle.dim,
        size=bundle.preprocess.to_dict()["size"],
        mode=bundle.preprocess.mode,
        thresholds=bundle.thresholds,
        backend=bundle.backend,
        choice=bundle.choice.to_dict() if bundle.choice else None,
        info=bundle.info,
    )
