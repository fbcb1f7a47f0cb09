"""Every call of the API as a plain request, shared by both clients: they differ only in how they send it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from serve import schemas
from serve.schemas import format_id
from serve.store.protocol import ItemId

A = TypeVar("A")

Image = bytes | Path
Vector = Sequence[float]


@dataclass(frozen=True)
class Call(Generic[A]):
    """A request and the type of its answer."""

    method: str
    path: str
    answer: type[A]
    params: dict[str, str] = field(default_factory=dict)
    json: bytes | None = None
    files: list[tuple[str, tuple[str, bytes]]] | None = None
    data: dict[str, str] | None = None

    def sending(self) -> dict[str, Any]:
        """The arguments of httpx's ``request``."""
        headers = {} if self.json is None else {"Content-Type": "application/json"}
        return {
            "method": self.method,
            "url": self.path,
            "params": self.params,
            "content": self.json,
            "files": self.files,
            "data": self.data,
            "headers": headers,
        }


def answer_of(call: Call[A], content: bytes) -> A:
    """The body of a successful response as the call's type; bytes are returned as they are."""
    if call.answer is bytes:
        return content  # type: ignore[return-value]  # A is bytes here
    return msgspec.json.decode(content, type=call.answer)


def options(**given: Any) -> dict[str, str]:
    """Search options as form fields: what is None is left out, lists and objects become JSON text."""
    fields = {}
    for name, value in given.items():
        if value is None or value is False or value == []:
            continue
        fields[name] = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return fields


def _file(image: Image) -> tuple[str, bytes]:
    return ("image", image.read_bytes() if isinstance(image, Path) else image)


def _numbers(vector: Vector) -> list[float]:
    return [float(value) for value in vector]


def _item_path(item_id: ItemId, ending: str = "") -> str:
    return f"/v1/items/{quote(format_id(item_id), safe='')}{ending}"


def search_image(image: Image, fields: dict[str, str]) -> Call[schemas.SearchAnswer]:
    """``POST /v1/search``."""
    files = [("image", _file(image))]
    return Call("POST", "/v1/search", schemas.SearchAnswer, files=files, data=fields)


def search_images(images: Iterable[Image], fields: dict[str, str]) -> Call[schemas.BatchAnswer]:
    """``POST /v1/search/batch``."""
    files = [("image", _file(image)) for image in images]
    return Call("POST", "/v1/search/batch", schemas.BatchAnswer, files=files, data=fields)


def search_vector(vector: Vector, given: Mapping[str, Any]) -> Call[schemas.SearchAnswer]:
    """``POST /v1/search/vector``."""
    body = {"vector": _numbers(vector), **_present(given)}
    return Call("POST", "/v1/search/vector", schemas.SearchAnswer, json=msgspec.json.encode(body))


def search_by_id(item_id: ItemId, fields: dict[str, str]) -> Call[schemas.SearchAnswer]:
    """``GET /v1/items/{id}/similar``."""
    return Call("GET", _item_path(item_id, "/similar"), schemas.SearchAnswer, params=fields)


def upsert_image(
    image: Image,
    item_id: ItemId | None,
    label: str | None,
    metadata: Mapping[str, Any],
    collection: str | None,
) -> Call[schemas.Written]:
    """``POST /v1/items``."""
    data = options(
        id=None if item_id is None else format_id(item_id),
        label=label,
        metadata=dict(metadata),
        collection=collection,
    )
    return Call("POST", "/v1/items", schemas.Written, files=[("image", _file(image))], data=data)


def upsert_vectors(
    items: Iterable[schemas.NewItem], collection: str | None, fingerprint: str | None
) -> Call[schemas.Written]:
    """``POST /v1/items/vectors``."""
    body = schemas.UpsertVectors(items=list(items), collection=collection, fingerprint=fingerprint)
    return Call("POST", "/v1/items/vectors", schemas.Written, json=msgspec.json.encode(body))


def delete(
    ids: Iterable[ItemId], where: Mapping[str, Any] | None, collection: str | None, *, erase: bool
) -> Call[schemas.Deleted]:
    """``POST /v1/items/delete``."""
    body = schemas.DeleteItems(
        ids=list(ids), filter=None if where is None else dict(where), erase=erase, collection=collection
    )
    return Call("POST", "/v1/items/delete", schemas.Deleted, json=msgspec.json.encode(body))


def get(item_id: ItemId, collection: str | None, *, with_vector: bool) -> Call[schemas.ItemDocument]:
    """``GET /v1/items/{id}``."""
    params = options(with_vector=with_vector, collection=collection)
    return Call("GET", _item_path(item_id), schemas.ItemDocument, params=params)


def thumbnail(item_id: ItemId, collection: str | None) -> Call[bytes]:
    """``GET /v1/items/{id}/thumbnail``."""
    return Call("GET", _item_path(item_id, "/thumbnail"), bytes, params=options(collection=collection))


def change(item_id: ItemId, changes: Mapping[str, Any], collection: str | None) -> Call[schemas.ItemDocument]:
    """``PATCH /v1/items/{id}``."""
    body = msgspec.json.encode(dict(changes))
    params = options(collection=collection)
    return Call("PATCH", _item_path(item_id), schemas.ItemDocument, params=params, json=body)


def verify(first: Image, second: Image, rate: str | None) -> Call[schemas.VerifyAnswer]:
    """``POST /v1/verify``."""
    files = [("first", _file(first)), ("second", _file(second))]
    return Call("POST", "/v1/verify", schemas.VerifyAnswer, files=files, data=options(false_accept_rate=rate))


def embed(images: Iterable[Image]) -> Call[schemas.EmbedAnswer]:
    """``POST /v1/embed``."""
    return Call("POST", "/v1/embed", schemas.EmbedAnswer, files=[("image", _file(image)) for image in images])


def collections() -> Call[schemas.CollectionList]:
    """``GET /v1/collections``."""
    return Call("GET", "/v1/collections", schemas.CollectionList)


def create_collection(
    name: str, dim: int | None, fingerprint: str | None, index: str | None
) -> Call[schemas.CollectionStats]:
    """``POST /v1/collections``."""
    body = schemas.NewCollection(name=name, dim=dim, fingerprint=fingerprint, index=index)
    return Call("POST", "/v1/collections", schemas.CollectionStats, json=msgspec.json.encode(body))


def set_alias(alias: str, collection: str | None) -> Call[schemas.CollectionList]:
    """``PUT /v1/aliases/{alias}``."""
    body = msgspec.json.encode(schemas.AliasTarget(collection=collection))
    return Call("PUT", f"/v1/aliases/{quote(alias, safe='')}", schemas.CollectionList, json=body)


def reload(alias: str | None, collection: str | None) -> Call[schemas.Model]:
    """``POST /v1/reload``."""
    body = msgspec.json.encode(schemas.Reload(alias=alias, collection=collection))
    return Call("POST", "/v1/reload", schemas.Model, json=body)


def model() -> Call[schemas.Model]:
    """``GET /v1/model``."""
    return Call("GET", "/v1/model", schemas.Model)


def _present(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}
