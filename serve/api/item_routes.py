"""``/v1/items``: add, read, change and delete items."""

import hashlib
import random
from collections import Counter
from typing import Any

from fastapi import APIRouter, Depends
from msgspec import UNSET, Struct
from starlette.requests import Request
from starlette.responses import Response

from serve import schemas
from serve.api.bodies import fields_as, read_images, read_json, read_query
from serve.api.context import check_batch, service_of
from serve.api.documents import (
    PROBLEMS,
    answers,
    image_body,
    json_body,
    query_parameters,
    reply,
)
from serve.api.routing import ITEM
from serve.auth import read_key, write_key
from serve.problems import Problem
from serve.service import Service
from serve.store.types import Item, ItemMissing

reading = APIRouter(prefix="/v1", tags=["items"], dependencies=[Depends(read_key)])
writing = APIRouter(prefix="/v1", tags=["items"], dependencies=[Depends(write_key)])

# Items drawn for each one that a sample returns.
_DRAWN = 4


class ImageFields(Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields of an uploaded image."""

    id: str | None = None
    label: str | None = None
    metadata: dict[str, Any] = {}
    collection: schemas.CollectionName | None = None


class PageFields(Struct, kw_only=True, forbid_unknown_fields=True):
    """Which items to list."""

    after: schemas.Integer | None = None
    limit: schemas.Count = 100
    label: str | None = None
    filter: dict[str, Any] | None = None
    with_vectors: bool = False
    sample: bool = False
    collection: schemas.CollectionName | None = None


class OneItem(Struct, kw_only=True, forbid_unknown_fields=True):
    """How to read one item."""

    with_vector: bool = False
    collection: schemas.CollectionName | None = None


class OneDelete(Struct, kw_only=True, forbid_unknown_fields=True):
    """How to delete one item."""

    erase: bool = False
    collection: schemas.CollectionName | None = None


class InCollection(Struct, kw_only=True, forbid_unknown_fields=True):
    """Where to look."""

    collection: schemas.CollectionName | None = None


def document(item: Item) -> schemas.ItemDocument:
    """An item as the API shows it."""
    vector = None if item.vector is None else [float(value) for value in item.vector]
    return schemas.ItemDocument(id=item.id, label=item.label, metadata=dict(item.metadata), vector=vector)


def item_of(new: schemas.NewItem) -> Item:
    """The item to store, whose vector the store checks; a thumbnail that is no image is a 422."""
    if new.thumbnail is not None and _image_type(new.thumbnail) is None:
        raise Problem(422, "thumbnail", f"item {new.id}: its thumbnail is no JPEG, PNG or WebP")
    return Item(new.id, new.vector, new.label, new.metadata, new.thumbnail)


@writing.post(
    "/items",
    summary="Add an item by its image",
    status_code=201,
    responses=answers(schemas.Written, status=201),
    openapi_extra=image_body(ImageFields),
)
async def add_item(request: Request) -> Response:
    """Embed an image and store it; a known `id` is replaced, a missing one made of the image's SHA-256."""
    service = service_of(request)
    form = await read_images(request, "image")
    fields = fields_as(form.fields, ImageFields)
    content = form.files["image"][0]
    item_id = schemas.parse_id(fields.id) if fields.id else hashlib.sha256(content).hexdigest()[:16]
    store = await service.store(fields.collection)
    with service.admission.admit():
        embedded = await service.pipeline.embed(content, thumbnail=service.settings.thumbnails)
        item = Item(item_id, embedded.vector, fields.label, fields.metadata, embedded.thumbnail)
        await service.threads.change(lambda: store.upsert([item], fingerprint=embedded.fingerprint))
    return reply(schemas.Written(stored=1, ids=[item_id]), 201)


@writing.post(
    "/items/vectors",
    summary="Add items by their vectors",
    status_code=201,
    responses=answers(schemas.Written, status=201),
    openapi_extra=json_body(schemas.UpsertVectors),
)
async def add_vectors(request: Request) -> Response:
    """Store items whose vectors were made elsewhere; name the model's `fingerprint` to have it checked."""
    service = service_of(request)
    body = await read_json(request, schemas.UpsertVectors)
    check_batch(len(body.items), service, "items")
    items = [item_of(item) for item in body.items]
    store = await service.store(body.collection)
    stored = await service.threads.change(lambda: store.upsert(items, fingerprint=body.fingerprint))
    return reply(schemas.Written(stored=stored, ids=[item.id for item in items]), 201)


@writing.post(
    "/items/delete",
    summary="Delete items by id or filter",
    responses=answers(schemas.Deleted),
    openapi_extra=json_body(schemas.DeleteItems),
)
async def delete_items(request: Request) -> Response:
    """Delete the union of `ids` and all that pass `filter`; `erase` removes their bytes from the disk too."""
    service = service_of(request)
    body = await read_json(request, schemas.DeleteItems)
    check_batch(len(body.ids), service, "ids")
    store = await service.store(body.collection)
    deleted = await service.threads.change(
        lambda: store.delete(body.ids, where=body.filter, erase=body.erase)
    )
    return reply(schemas.Deleted(deleted=deleted))


@reading.post(
    "/items/count",
    summary="Count items",
    responses=answers(schemas.Counted),
    openapi_extra=json_body(schemas.CountItems),
)
async def count_items(request: Request) -> Response:
    """How many items pass `filter`; all without one."""
    service = service_of(request)
    body = await read_json(request, schemas.CountItems)
    store = await service.store(body.collection)
    return reply(schemas.Counted(count=await service.threads.call(lambda: store.count(body.filter))))


@reading.post(
    "/items/get",
    summary="Read several items",
    responses=answers(schemas.ItemList),
    openapi_extra=json_body(schemas.GetItems),
)
async def get_items(request: Request) -> Response:
    """Items in the order of `ids`, null where there is none."""
    service = service_of(request)
    body = await read_json(request, schemas.GetItems)
    check_batch(len(body.ids), service, "ids")
    store = await service.store(body.collection)
    found = await service.threads.call(lambda: store.get(body.ids, with_vectors=body.with_vectors))
    return reply(schemas.ItemList(items=[None if item is None else document(item) for item in found]))


@reading.get(
    "/items",
    summary="List items",
    responses=answers(schemas.ItemPage),
    openapi_extra=query_parameters(PageFields),
)
async def list_items(request: Request) -> Response:
    """Items in the order of their last write, page by page: pass the answer's `next` as `after`.

    With `sample`, items drawn at random from the whole collection instead, of as many labels as there are.
    """
    service = service_of(request)
    fields = read_query(request, PageFields)
    check_batch(fields.limit, service, "items a page")
    if fields.sample:
        return reply(await _sample(service, fields))
    condition = schemas.with_label(fields.filter, fields.label)
    store = await service.store(fields.collection)
    page = await service.threads.call(
        lambda: store.scroll(fields.after, fields.limit, where=condition, with_vectors=fields.with_vectors)
    )
    return reply(schemas.ItemPage(items=[document(item) for item in page.items], next=page.next))


async def _sample(service: Service, fields: PageFields) -> schemas.ItemPage:
    if fields.after is not None or fields.label is not None or fields.filter is not None:
        raise Problem(422, "invalid", "sample is of the whole collection; leave out after, label and filter")
    store = await service.store(fields.collection)
    # More than are shown, so that rare labels appear beside frequent ones.
    drawn = await service.threads.call(
        lambda: store.sample(_DRAWN * fields.limit, with_vectors=fields.with_vectors)
    )
    if len(drawn) > fields.limit:
        random.shuffle(drawn)
    # The first of each label, then the second of each, and so on.
    seen: Counter[str | None] = Counter()
    ranks = []
    for item in drawn:
        ranks.append(seen[item.label])
        seen[item.label] += 1
    mixed = [drawn[at] for at in sorted(range(len(drawn)), key=ranks.__getitem__)]
    return schemas.ItemPage(items=[document(item) for item in mixed[: fields.limit]], next=None)


@reading.get(
    f"{ITEM}/thumbnail",
    summary="An item's thumbnail",
    response_class=Response,
    responses={200: {"description": "A JPEG", "content": {"image/jpeg": {}}}, **PROBLEMS},
    openapi_extra=query_parameters(InCollection),
)
async def get_thumbnail(request: Request, item_id: str) -> Response:
    """A small JPEG of the item's image; 404 where it was stored without one."""
    service = service_of(request)
    fields = read_query(request, InCollection)
    store = await service.store(fields.collection)
    wanted = schemas.parse_id(item_id)
    content = await service.threads.call(lambda: store.thumbnail(wanted))
    if content is None:
        raise Problem(404, "thumbnail-missing", f"item {item_id}: no such item, or it has no thumbnail")
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"ETag": tag, "Cache-Control": "private, max-age=60"}
    known = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_image_type(content) or "image/jpeg", headers=headers)


@reading.get(
    ITEM,
    summary="Read an item",
    responses=answers(schemas.ItemDocument),
    openapi_extra=query_parameters(OneItem),
)
async def get_item(request: Request, item_id: str) -> Response:
    """One item, with its vector when `with_vector` is true."""
    service = service_of(request)
    fields = read_query(request, OneItem)
    store = await service.store(fields.collection)
    wanted = schemas.parse_id(item_id)
    (item,) = await service.threads.call(lambda: store.get([wanted], with_vectors=fields.with_vector))
    if item is None:
        raise ItemMissing(f"item {item_id}: there is none; GET /v1/items lists all")
    return reply(document(item))


@writing.patch(
    ITEM,
    summary="Change an item's label or metadata",
    responses=answers(schemas.ItemDocument),
    openapi_extra={**json_body(schemas.ItemChanges), **query_parameters(InCollection)},
)
async def change_item(request: Request, item_id: str) -> Response:
    """Absent fields stay as they are; null removes a field of the metadata."""
    service = service_of(request)
    fields = read_query(request, InCollection)
    body = await read_json(request, schemas.ItemChanges)
    store = await service.store(fields.collection)
    wanted = schemas.parse_id(item_id)
    given = {"label": body.label, "metadata": body.metadata}
    changes = {name: value for name, value in given.items() if value is not UNSET}
    await service.threads.change(lambda: store.update(wanted, changes))
    (item,) = await service.threads.call(lambda: store.get([wanted]))
    if item is None:
        raise ItemMissing(f"item {item_id}: deleted meanwhile")
    return reply(document(item))


@writing.delete(
    ITEM,
    summary="Delete an item",
    responses=answers(schemas.Deleted),
    openapi_extra=query_parameters(OneDelete),
)
async def delete_item(request: Request, item_id: str) -> Response:
    """Delete one item; `erase` removes every byte of it from the disk as well."""
    service = service_of(request)
    fields = read_query(request, OneDelete)
    store = await service.store(fields.collection)
    wanted = schemas.parse_id(item_id)
    deleted = await service.threads.change(lambda: store.delete([wanted], erase=fields.erase))
    if not deleted:
        raise ItemMissing(f"item {item_id}: there is none; nothing was deleted")
    return reply(schemas.Deleted(deleted=deleted))


def _image_type(content: bytes) -> str | None:
    """Media type of an image by its first bytes; None where it is not JPEG, PNG or WebP."""
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith(b"\x89PNG\r\n"):
        return "image/png"
    return "image/webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None
