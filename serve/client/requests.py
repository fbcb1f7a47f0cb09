"""Every call of the API as a plain request, shared by both clients: they differ only in how they send it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

import msgspec

from serve import schemas
from serve.schemas import format_id
from serve.store.protocol import ItemId

A = TypeVar("A")

Image = bytes | Path
Vector = Sequence[float]


class Options(TypedDict, total=False):
    """What every search may be told.

    Attributes:
        label: Only items with this label.
        where: Only items that pass this filter, such as ``{"metadata.year": {"gte": 1900}}``.
        min_similarity: Drop neighbours below this cosine.
        exclude: Ids that are never neighbours.
        group_by: "label" keeps the best item of each label.
        exact: Scan exactly instead of asking an approximate index.
        collection: Collection or alias; the service's default when absent.
    """

    label: str | None
    where: Mapping[str, Any] | None
    min_similarity: float | None
    exclude: Sequence[ItemId]
    group_by: Literal["label"] | None
    exact: bool
    collection: str | None


@dataclass(frozen=True)
class Call(Generic[A]):
    """A request and the type of its answer."""

    method: str
    path: str
    answer: type[A]
    params: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    content_type: str = "application/json"
    files: list[tuple[str, tuple[str, bytes]]] | None = None
    data: dict[str, str] | None = None

    def sending(self) -> dict[str, Any]:
        """The arguments of httpx's ``request``."""
        headers = {} if self.content is None else {"Content-Type": self.content_type}
        return {
            "method": self.method,
            "url": self.path,
            "params": self.params,
            "content": self.content,
            "files": self.files,
            "data": self.data,
            "headers": headers,
        }


def answer_of(call: Call[A], content: bytes) -> A:
    """The body of a successful response as the call's type; bytes are returned as they are."""
    if call.answer is bytes:
        return content  # type: ignore[return-value]  # A is bytes here
    return msgspec.json.decode(content, type=call.answer)


def fields(**given: Any) -> dict[str, str]:
    """Form fields or query parameters: what is None is left out, lists and objects become JSON text."""
    return {
        name: value if isinstance(value, str) else msgspec.json.encode(value).decode()
        for name, value in given.items()
        if value is not None and value is not False
    }


def _search(k: int, options: Options) -> dict[str, Any]:
    """A search's options under the API's names."""
    given: dict[str, Any] = {**options, "k": k}
    given["filter"] = given.pop("where", None)
    given["exclude"] = list(given.get("exclude", ())) or None
    return given


def _file(image: Image) -> tuple[str, bytes]:
    return ("image", image.read_bytes() if isinstance(image, Path) else image)


def _numbers(vector: Vector) -> list[float]:
    return [float(value) for value in vector]


def _item_path(item_id: ItemId, ending: str = "") -> str:
    return f"/v1/items/{quote(format_id(item_id), safe='')}{ending}"


def search_image(image: Image, k: int, options: Options) -> Call[schemas.SearchAnswer]:
    """``POST /v1/search``."""
    files = [("image", _file(image))]
    data = fields(**_search(k, options))
    return Call("POST", "/v1/search", schemas.SearchAnswer, files=files, data=data)


def search_images(images: Iterable[Image], k: int, options: Options) -> Call[schemas.BatchAnswer]:
    """``POST /v1/search/batch``."""
    files = [("image", _file(image)) for image in images]
    data = fields(**_search(k, options))
    return Call("POST", "/v1/search/batch", schemas.BatchAnswer, files=files, data=data)


def search_vector(
    vector: Vector, k: int, fingerprint: str | None, options: Options
) -> Call[schemas.SearchAnswer]:
    """``POST /v1/search/vector``."""
    given = {"vector": _numbers(vector), "fingerprint": fingerprint, **_search(k, options)}
    return Call("POST", "/v1/search/vector", schemas.SearchAnswer, content=_present(given))


def search_vectors(
    vectors: Iterable[Vector], k: int, fingerprint: str | None, options: Options
) -> Call[schemas.BatchAnswer]:
    """``POST /v1/search/vector`` with several."""
    rows = [_numbers(vector) for vector in vectors]
    given = {"vectors": rows, "fingerprint": fingerprint, **_search(k, options)}
    return Call("POST", "/v1/search/vector", schemas.BatchAnswer, content=_present(given))


def search_by_id(item_id: ItemId, k: int, options: Options) -> Call[schemas.SearchAnswer]:
    """``GET /v1/items/{id}/similar``."""
    params = fields(**_search(k, options))
    return Call("GET", _item_path(item_id, "/similar"), schemas.SearchAnswer, params=params)


def search_examples(
    positives: Sequence[ItemId], negatives: Sequence[ItemId], k: int, options: Options
) -> Call[schemas.SearchAnswer]:
    """``POST /v1/search/examples``."""
    given = {"positives": list(positives), "negatives": list(negatives), **_search(k, options)}
    return Call("POST", "/v1/search/examples", schemas.SearchAnswer, content=_present(given))


def upsert_image(
    image: Image,
    item_id: ItemId | None,
    label: str | None,
    metadata: Mapping[str, Any],
    collection: str | None,
) -> Call[schemas.Written]:
    """``POST /v1/items``."""
    data = fields(
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
    return Call("POST", "/v1/items/vectors", schemas.Written, content=msgspec.json.encode(body))


def import_block(lines: bytes, collection: str | None, fingerprint: str | None) -> Call[bytes]:
    """``POST /v1/import``."""
    params = fields(collection=collection, fingerprint=fingerprint)
    kind = "application/x-ndjson"
    return Call("POST", "/v1/import", bytes, params=params, content=lines, content_type=kind)


def delete(
    ids: Iterable[ItemId], where: Mapping[str, Any] | None, collection: str | None, *, erase: bool
) -> Call[schemas.Deleted]:
    """``POST /v1/items/delete``."""
    body = schemas.DeleteItems(
        ids=list(ids), filter=None if where is None else dict(where), erase=erase, collection=collection
    )
    return Call("POST", "/v1/items/delete", schemas.Deleted, content=msgspec.json.encode(body))


def get(item_id: ItemId, collection: str | None, *, with_vector: bool) -> Call[schemas.ItemDocument]:
    """``GET /v1/items/{id}``."""
    params = fields(with_vector=with_vector, collection=collection)
    return Call("GET", _item_path(item_id), schemas.ItemDocument, params=params)


def count(where: Mapping[str, Any] | None, collection: str | None) -> Call[schemas.Counted]:
    """``POST /v1/items/count``."""
    body = schemas.CountItems(filter=None if where is None else dict(where), collection=collection)
    return Call("POST", "/v1/items/count", schemas.Counted, content=msgspec.json.encode(body))


def get_many(ids: Iterable[ItemId], collection: str | None, *, with_vectors: bool) -> Call[schemas.ItemList]:
    """``POST /v1/items/get``."""
    body = schemas.GetItems(ids=list(ids), with_vectors=with_vectors, collection=collection)
    return Call("POST", "/v1/items/get", schemas.ItemList, content=msgspec.json.encode(body))


def page(
    after: int | None,
    limit: int,
    label: str | None,
    where: Mapping[str, Any] | None,
    collection: str | None,
    *,
    with_vectors: bool,
) -> Call[schemas.ItemPage]:
    """``GET /v1/items``."""
    params = fields(
        after=after, limit=limit, label=label, filter=where, collection=collection, with_vectors=with_vectors
    )
    return Call("GET", "/v1/items", schemas.ItemPage, params=params)


def sample(limit: int, collection: str | None, *, with_vectors: bool) -> Call[schemas.ItemPage]:
    """``GET /v1/items`` with ``sample``."""
    params = fields(sample=True, limit=limit, collection=collection, with_vectors=with_vectors)
    return Call("GET", "/v1/items", schemas.ItemPage, params=params)


def thumbnail(item_id: ItemId, collection: str | None) -> Call[bytes]:
    """``GET /v1/items/{id}/thumbnail``."""
    return Call("GET", _item_path(item_id, "/thumbnail"), bytes, params=fields(collection=collection))


def change(item_id: ItemId, changes: Mapping[str, Any], collection: str | None) -> Call[schemas.ItemDocument]:
    """``PATCH /v1/items/{id}``."""
    body = msgspec.json.encode(dict(changes))
    params = fields(collection=collection)
    return Call("PATCH", _item_path(item_id), schemas.ItemDocument, params=params, content=body)


def verify(first: Image, second: Image, rate: str | None) -> Call[schemas.VerifyAnswer]:
    """``POST /v1/verify``."""
    files = [("first", _file(first)), ("second", _file(second))]
    return Call("POST", "/v1/verify", schemas.VerifyAnswer, files=files, data=fields(false_accept_rate=rate))


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
    return Call("POST", "/v1/collections", schemas.CollectionStats, content=msgspec.json.encode(body))


def delete_collection(name: str) -> Call[schemas.CollectionList]:
    """``DELETE /v1/collections/{name}``."""
    return Call("DELETE", f"/v1/collections/{quote(name, safe='')}", schemas.CollectionList)


def create_payload_index(field: str, collection: str | None) -> Call[schemas.CollectionStats]:
    """``POST /v1/payload-indexes``."""
    body = schemas.NewPayloadIndex(field=field, collection=collection)
    return Call("POST", "/v1/payload-indexes", schemas.CollectionStats, content=msgspec.json.encode(body))


def drop_payload_index(field: str, collection: str | None) -> Call[schemas.CollectionStats]:
    """``DELETE /v1/payload-indexes``."""
    params = fields(field=field, collection=collection)
    return Call("DELETE", "/v1/payload-indexes", schemas.CollectionStats, params=params)


def set_alias(alias: str, collection: str | None) -> Call[schemas.CollectionList]:
    """``PUT /v1/aliases/{alias}``."""
    body = msgspec.json.encode(schemas.AliasTarget(collection=collection))
    return Call("PUT", f"/v1/aliases/{quote(alias, safe='')}", schemas.CollectionList, content=body)


def reload(alias: str | None, collection: str | None) -> Call[schemas.Model]:
    """``POST /v1/reload``."""
    body = msgspec.json.encode(schemas.Reload(alias=alias, collection=collection))
    return Call("POST", "/v1/reload", schemas.Model, content=body)


def model() -> Call[schemas.Model]:
    """``GET /v1/model``."""
    return Call("GET", "/v1/model", schemas.Model)


def stats(collection: str | None) -> Call[schemas.CollectionStats]:
    """``GET /v1/stats``."""
    return Call("GET", "/v1/stats", schemas.CollectionStats, params=fields(collection=collection))


def labels(collection: str | None) -> Call[schemas.Labels]:
    """``GET /v1/labels``."""
    return Call("GET", "/v1/labels", schemas.Labels, params=fields(collection=collection))


def _present(given: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode({name: value for name, value in given.items() if value is not None})
