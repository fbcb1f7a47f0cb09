"""Every operation of the service, once: what it takes, what is asked for it, and how the answer is read.

Both clients send these calls; what a function takes here is what the client's method of its name takes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, Unpack
from urllib.parse import quote

import httpx
import msgspec

from models.errors import InputError
from serve import schemas
from serve.client.encoding import check_metadata, encode
from serve.client.failures import ServiceError
from serve.schemas import BatchAnswer, CollectionList, CollectionStats, ItemDocument, SearchAnswer, format_id
from serve.store.items import check_id
from serve.store.types import DEFAULT_K, ItemId, SearchArguments, several

A = TypeVar("A")

Image = bytes | str | Path
"""Encoded bytes, or the path of a file."""

Vector = Sequence[float]


class Options(SearchArguments, total=False):
    """The keyword arguments of every search; :class:`serve.store.types.SearchQuery` explains those above.

    Attributes:
        label: Only items with this label.
        collection: Collection or alias; the service's default when absent.
    """

    label: str | None
    collection: str | None


@dataclass(frozen=True)
class Call(Generic[A]):
    """A request, and what its answer means.

    Attributes:
        method: HTTP method.
        path: Path of the URL, percent-encoded.
        read: Makes what the operation returns of the body of a successful answer.
        params: Query string.
        content: The body, unless it is a form.
        content_type: Of that body.
        files: Files of a form: field, and name and content.
        data: Its other fields.
    """

    method: str
    path: str
    read: Callable[[bytes], A]
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

    def answer(self, response: httpx.Response) -> A:
        """What a response means.

        Raises:
            httpx.HTTPStatusError: The service refused.
            ServiceError: The answer is none of this API's.
        """
        try:
            return self.read(response.raise_for_status().content)
        except (msgspec.DecodeError, IndexError) as error:
            text = f"{response.url.host}: its answer is none of this service's ({error}); check the address"
            raise ServiceError(response.status_code, "", text) from error


def search_image(image: Image, k: int = DEFAULT_K, **options: Unpack[Options]) -> Call[SearchAnswer]:
    """The nearest neighbours of an image, encoded bytes or a file."""
    return _upload("/v1/search", _as(SearchAnswer), [("image", image)], _named(k, options))


def search_images(
    images: Iterable[Image], k: int = DEFAULT_K, **options: Unpack[Options]
) -> Call[BatchAnswer]:
    """The nearest neighbours of several images at once; an unusable one gives an error in its place."""
    files = [("image", image) for image in several(images)]
    return _upload("/v1/search/batch", _as(BatchAnswer), files, _named(k, options))


def search_vector(
    vector: Vector, k: int = DEFAULT_K, *, fingerprint: str | None = None, **options: Unpack[Options]
) -> Call[SearchAnswer]:
    """The nearest neighbours of a vector; another model's ``fingerprint`` is refused."""
    body = {"vector": _numbers(vector), "fingerprint": fingerprint, **_named(k, options)}
    return _json("/v1/search/vector", _as(SearchAnswer), body)


def search_vectors(
    vectors: Iterable[Vector],
    k: int = DEFAULT_K,
    *,
    fingerprint: str | None = None,
    **options: Unpack[Options],
) -> Call[BatchAnswer]:
    """The nearest neighbours of several vectors of the same model at once."""
    rows = [_numbers(vector) for vector in vectors]
    body = {"vectors": rows, "fingerprint": fingerprint, **_named(k, options)}
    return _json("/v1/search/vector", _as(BatchAnswer), body)


def search_by_id(item_id: ItemId, k: int = DEFAULT_K, **options: Unpack[Options]) -> Call[SearchAnswer]:
    """The nearest neighbours of a stored item, itself left out."""
    return Call("GET", _item(item_id, "/similar"), _as(SearchAnswer), _fields(_named(k, options)))


def search_examples(
    positives: Sequence[ItemId],
    negatives: Sequence[ItemId] = (),
    k: int = DEFAULT_K,
    **options: Unpack[Options],
) -> Call[SearchAnswer]:
    """Items like the positives and unlike the negatives, both ids of stored items."""
    body = {"positives": several(positives), "negatives": several(negatives), **_named(k, options)}
    return _json("/v1/search/examples", _as(SearchAnswer), body)


def upsert(
    image: Image,
    item_id: ItemId | None = None,
    *,
    label: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    collection: str | None = None,
) -> Call[ItemId]:
    """Embed and store an image; returns its id, made from its content when none is given."""
    check_metadata(metadata)
    given = {
        "id": None if item_id is None else format_id(check_id(item_id)),
        "label": label,
        "metadata": metadata,
        "collection": collection,
    }
    return _upload("/v1/items", lambda body: _as(schemas.Written)(body).ids[0], [("image", image)], given)


def upsert_vectors(
    items: Iterable[schemas.NewItem], *, collection: str | None = None, fingerprint: str | None = None
) -> Call[int]:
    """Store items with their vectors, all or none; returns how many."""
    listed = list(items)
    for item in listed:
        check_metadata(getattr(item, "metadata", None))
    given = {"items": listed, "collection": collection, "fingerprint": fingerprint}
    return _json("/v1/items/vectors", lambda body: _as(schemas.Written)(body).stored, given)


def import_block(
    block: bytes, sent: int, *, collection: str | None = None, fingerprint: str | None = None
) -> Call[schemas.ImportProgress]:
    """Store the items of some lines of JSON, ``sent`` lines of others ahead of them."""
    return Call(
        "POST",
        "/v1/import",
        lambda body: _progress_of(body, sent),
        _fields({"collection": collection, "fingerprint": fingerprint}),
        content=block,
        content_type="application/x-ndjson",
    )


def delete(
    ids: Iterable[ItemId] = (),
    *,
    where: Mapping[str, Any] | None = None,
    erase: bool = False,
    collection: str | None = None,
) -> Call[int]:
    """Delete by id, by filter or both; ``erase`` removes every byte. Returns how many went."""
    given = {"ids": several(ids), "filter": where, "erase": erase, "collection": collection}
    return _json("/v1/items/delete", lambda body: _as(schemas.Deleted)(body).deleted, given)


def get(
    item_id: ItemId, *, with_vector: bool = False, collection: str | None = None
) -> Call[ItemDocument | None]:
    """One item, or None where there is none of that id."""
    given = {"ids": [check_id(item_id)], "with_vectors": with_vector, "collection": collection}
    return _json("/v1/items/get", lambda body: _as(schemas.ItemList)(body).items[0], given)


def count(*, where: Mapping[str, Any] | None = None, collection: str | None = None) -> Call[int]:
    """How many items pass the filter; all without one."""
    given = {"filter": where, "collection": collection}
    return _json("/v1/items/count", lambda body: _as(schemas.Counted)(body).count, given)


def get_many(
    ids: Iterable[ItemId], *, with_vectors: bool = False, collection: str | None = None
) -> Call[list[ItemDocument | None]]:
    """Items in the order of ``ids``, None where there is none."""
    given = {"ids": several(ids), "with_vectors": with_vectors, "collection": collection}
    return _json("/v1/items/get", lambda body: _as(schemas.ItemList)(body).items, given)


def page(
    after: int | None = None,
    limit: int = 100,
    *,
    label: str | None = None,
    where: Mapping[str, Any] | None = None,
    with_vectors: bool = False,
    collection: str | None = None,
) -> Call[schemas.ItemPage]:
    """Some items in the order of their last write; ``next`` is the ``after`` of the following page."""
    given = {
        "after": after,
        "limit": limit,
        "label": label,
        "filter": where,
        "with_vectors": with_vectors,
        "collection": collection,
    }
    return Call("GET", "/v1/items", _as(schemas.ItemPage), _fields(given))


def sample(
    limit: int = 100, *, with_vectors: bool = False, collection: str | None = None
) -> Call[list[ItemDocument]]:
    """Items drawn at random from the whole collection, of as many labels as there are."""
    params = _fields({"sample": True, "limit": limit, "collection": collection, "with_vectors": with_vectors})
    return Call("GET", "/v1/items", lambda body: _as(schemas.ItemPage)(body).items, params)


def thumbnail(item_id: ItemId, *, collection: str | None = None) -> Call[bytes]:
    """An item's thumbnail, an encoded image; status 404 where there is none."""
    return Call("GET", _item(item_id, "/thumbnail"), bytes, _fields({"collection": collection}))


def change(
    item_id: ItemId, changes: Mapping[str, Any], *, collection: str | None = None
) -> Call[ItemDocument]:
    """Change "label" and "metadata" in part; None removes a field of the metadata."""
    check_metadata(changes)
    body = encode(changes)
    params = _fields({"collection": collection})
    return Call("PATCH", _item(item_id), _as(ItemDocument), params, content=body)


def embed(images: Iterable[Image]) -> Call[schemas.EmbedAnswer]:
    """Vectors of images."""
    return _upload("/v1/embed", _as(schemas.EmbedAnswer), [("image", image) for image in several(images)], {})


def verify(
    first: Image, second: Image, *, false_accept_rate: str | None = None
) -> Call[schemas.VerifyAnswer]:
    """Whether two images show the same, by the model's calibrated threshold."""
    files = [("first", first), ("second", second)]
    return _upload("/v1/verify", _as(schemas.VerifyAnswer), files, {"false_accept_rate": false_accept_rate})


def model() -> Call[schemas.Model]:
    """What embeds images at the service."""
    return Call("GET", "/v1/model", _as(schemas.Model))


def reload(alias: str | None = None, collection: str | None = None) -> Call[schemas.Model]:
    """Have the service load its model's folder again, and move an alias with it."""
    return _json("/v1/reload", _as(schemas.Model), {"alias": alias, "collection": collection})


def collections() -> Call[CollectionList]:
    """All collections, aliases, and the default one."""
    return Call("GET", "/v1/collections", _as(CollectionList))


def create_collection(
    name: str, *, dim: int | None = None, fingerprint: str | None = None, index: str | None = None
) -> Call[CollectionStats]:
    """A new, empty collection; without ``dim`` it is for the loaded model."""
    given = {"name": name, "dim": dim, "fingerprint": fingerprint, "index": index}
    return _json("/v1/collections", _as(CollectionStats), given)


def delete_collection(name: str) -> Call[CollectionList]:
    """Delete a collection with all its files; refused while it is in use."""
    return Call("DELETE", f"/v1/collections/{quote(name, safe='')}", _as(CollectionList))


def set_alias(alias: str, collection: str | None) -> Call[CollectionList]:
    """Let an alias mean a collection from now on, or nothing."""
    body = encode({"collection": collection})
    return Call("PUT", f"/v1/aliases/{quote(alias, safe='')}", _as(CollectionList), content=body)


def create_field_index(field: str, *, collection: str | None = None) -> Call[CollectionStats]:
    """Make filters on "label" or "metadata.NAME" fast."""
    given = {"field": field, "collection": collection}
    return _json("/v1/field-indexes", _as(CollectionStats), given)


def drop_field_index(field: str, *, collection: str | None = None) -> Call[CollectionStats]:
    """Undo :func:`create_field_index`."""
    params = _fields({"field": field, "collection": collection})
    return Call("DELETE", "/v1/field-indexes", _as(CollectionStats), params)


def stats(*, collection: str | None = None) -> Call[CollectionStats]:
    """A collection's figures."""
    return Call("GET", "/v1/stats", _as(CollectionStats), _fields({"collection": collection}))


def labels(*, collection: str | None = None) -> Call[dict[str, int]]:
    """Up to 1000 labels with their number of items, most frequent first."""
    params = _fields({"collection": collection})
    return Call("GET", "/v1/labels", lambda body: _as(schemas.Labels)(body).labels, params)


def _progress_of(answer: bytes, sent: int) -> schemas.ImportProgress:
    """The result of a block, from the answer's last line; ``sent`` items were sent ahead of it.

    Raises:
        ServiceError: The block was refused from some item on.
    """
    last = _as(schemas.ImportProgress)(answer.rstrip().rpartition(b"\n")[2])
    if last.error is not None:
        text = f"{last.error} (the {sent + last.line} before are stored)"
        if last.refused is not None:  # a block has one item on each of its lines
            text = f"item number {sent + last.refused}: {text.removeprefix(f'line {last.refused}: ')}"
        raise ServiceError(last.status or 0, last.code or "", text)
    return last


def _as(kind: type[A]) -> Callable[[bytes], A]:
    return msgspec.json.Decoder(kind).decode


def _json(path: str, read: Callable[[bytes], A], given: Mapping[str, Any]) -> Call[A]:
    """A call with a JSON body, from which what is None is left out."""
    present = {name: value for name, value in given.items() if value is not None}
    return Call("POST", path, read, content=encode(present))


def _upload(
    path: str, read: Callable[[bytes], A], images: Iterable[tuple[str, Image]], given: Mapping[str, Any]
) -> Call[A]:
    """A call with a form of images and other fields."""
    files = [(name, ("image", _content(image))) for name, image in images]
    return Call("POST", path, read, files=files, data=_fields(given))


def _content(image: Image) -> bytes:
    """The encoded bytes of an image."""
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    raise InputError(f"a {type(image).__name__} is no image; give encoded bytes or the path of a file")


def _fields(given: Mapping[str, Any]) -> dict[str, str]:
    """Form fields or query parameters: what is None is left out, lists and objects become JSON text."""
    return {
        name: value if isinstance(value, str) else encode(value).decode()
        for name, value in given.items()
        if value is not None and value is not False
    }


def _named(k: int, options: Options) -> dict[str, Any]:
    """A search's options under the API's names."""
    given: dict[str, Any] = {**options, "k": k}
    given["filter"] = given.pop("where", None)
    given["exclude"] = several(given.get("exclude", ())) or None
    return given


def _numbers(vector: Vector) -> list[float]:
    return [float(value) for value in vector]


def _item(item_id: ItemId, ending: str = "") -> str:
    return f"/v1/items/{quote(format_id(check_id(item_id)), safe='')}{ending}"
