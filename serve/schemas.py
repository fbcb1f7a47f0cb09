"""Requests and answers of the API, for the server and the client.

Requests and answers are msgspec structs: they validate, decode and encode several times faster than pydantic,
which matters for vectors, and their JSON schemas fill the OpenAPI document.
"""

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from serve.problems import Problem
from serve.store.types import DEFAULT_K, MOST_EFFORT, ItemId, SearchQuery

Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]  # what SQLite and Milvus store
Id = Annotated[str, Meta(min_length=1, max_length=1024)] | Integer
Count = Annotated[int, Meta(ge=1, le=2**31)]
Cosine = Annotated[float, Meta(ge=-1, le=1)]
CollectionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$")]

# Base64 of it still fits a line of an import.
MOST_THUMBNAIL_BYTES = 512 * 2**10

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


def parse_id(text: str) -> ItemId:
    """An item's id from a URL or a form field.

    A plain integer (``7``) is an integer, everything else is a string; a string that looks like an integer,
    or that ends like one of the API's own paths, is put in double quotes (``"7"``).

    Raises:
        Problem: 422, the id is empty or out of range.
    """
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    elif _INTEGER.fullmatch(text):
        number = int(text)
        if not -(2**63) <= number < 2**63:
            raise Problem(
                422, "id", f"id {text}: integers have at most 64 bits; put it in quotes for a string"
            )
        return number
    if not 1 <= len(text) <= 1024:
        raise Problem(422, "id", f"an id has 1 to 1024 characters, this one has {len(text)}")
    return text


def format_id(item_id: ItemId) -> str:
    """The inverse of :func:`parse_id`, for URLs (still to be percent-encoded) and form fields."""
    if isinstance(item_id, int):
        return str(item_id)
    plain = not (_INTEGER.fullmatch(item_id) or item_id.startswith('"') or "/" in item_id)
    # Dots alone are folders to whatever handles the URL on its way.
    return item_id if plain and item_id not in (".", "..") else f'"{item_id}"'


def with_label(condition: dict[str, Any] | None, label: str | None) -> dict[str, Any] | None:
    """A filter with the label shorthand folded in; None where neither asks for anything."""
    if label is None:
        return condition or None
    by_label = {"label": label}
    return {"and": [by_label, condition]} if condition else by_label


class SearchOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    """How to search; in JSON bodies, query strings and form fields alike.

    Attributes:
        k: Most neighbours.
        label: Only items with this label.
        filter: Only items that pass this condition on label, id and metadata (as JSON text in forms and
            queries).
        min_similarity: Drop neighbours below this cosine.
        exclude: Ids that are never neighbours (as JSON text in forms and queries).
        group_by: "label" keeps the best item of each label.
        exact: Scan exactly instead of asking an approximate index.
        effort: How far an approximate index looks: efSearch of HNSW for 10 neighbours, nprobe of an inverted
            index; the collection's when absent.
        collection: Collection or alias; the service's default when absent.
    """

    k: Count = DEFAULT_K
    label: str | None = None
    filter: dict[str, Any] | None = None
    min_similarity: Cosine | None = None
    exclude: list[Id] = []
    group_by: Literal["label"] | None = None
    exact: bool = False
    effort: Annotated[int, Meta(ge=1, le=MOST_EFFORT)] | None = None
    collection: CollectionName | None = None

    def query(self, fingerprint: str | None = None) -> SearchQuery:
        """What to ask of the store; ``fingerprint`` is the model's that made the vectors."""
        return SearchQuery(
            k=self.k,
            where=with_label(self.filter, self.label),
            min_similarity=self.min_similarity,
            exclude=tuple(self.exclude),
            group_by=self.group_by,
            exact=self.exact,
            effort=self.effort,
            fingerprint=fingerprint,
        )


class VectorSearch(SearchOptions, kw_only=True, forbid_unknown_fields=True):
    """Search by one vector, or by several at once.

    Attributes:
        vector: One query.
        vectors: Several queries, all of the same length; the answer then has one list a query.
        fingerprint: The model that made the vectors; another model's collection then refuses them.
    """

    vector: list[float] | None = None
    vectors: list[list[float]] | None = None
    fingerprint: str | None = None


class ExampleSearch(SearchOptions, kw_only=True, forbid_unknown_fields=True):
    """Search for items like some and unlike others, by their ids."""

    positives: Annotated[list[Id], Meta(min_length=1)]
    negatives: list[Id] = []


class Neighbour(Struct, kw_only=True):
    """One neighbour; ``similarity`` is the cosine in [-1, 1]."""

    id: ItemId
    similarity: float
    label: str | None = None
    metadata: dict[str, Any] = {}


class Plan(Struct, kw_only=True):
    """How the search was carried out, see :class:`serve.store.types.SearchPlan`."""

    strategy: str
    candidates: int | None
    selectivity: float | None
    index: str
    explored: int = 0


class SearchAnswer(Struct, kw_only=True):
    """Neighbours of one query, most similar first.

    Attributes:
        hits: The neighbours.
        plan: How they were found.
        timings_ms: Milliseconds by stage: decode, network, search, total.
        collection: Which collection answered.
    """

    hits: list[Neighbour]
    plan: Plan
    timings_ms: dict[str, float]
    collection: str


class QueryResult(Struct, kw_only=True, omit_defaults=True):
    """One query's part of a batch: neighbours, or what was wrong with it."""

    hits: list[Neighbour] | None = None
    error: str | None = None


class BatchAnswer(Struct, kw_only=True):
    """Neighbours of several queries, in their order."""

    results: list[QueryResult]
    plan: Plan | None
    timings_ms: dict[str, float]
    collection: str


class RawAnswer(Struct, kw_only=True):
    """Neighbours of one raw vector, most similar first."""

    ids: list[ItemId]
    similarities: list[float]


class RawBatchAnswer(Struct, kw_only=True):
    """Neighbours of several raw vectors, in their order."""

    ids: list[list[ItemId]]
    similarities: list[list[float]]


class EmbedAnswer(Struct, kw_only=True):
    """Vectors of images, in their order; null where an image was unusable, with the reason in ``errors``."""

    vectors: list[list[float] | None]
    errors: dict[int, str]
    fingerprint: str
    dim: int
    timings_ms: dict[str, float]


class VerifyAnswer(Struct, kw_only=True):
    """Whether two images show the same class.

    Attributes:
        same: The decision; null when the model carries no calibrated threshold.
        similarity: Cosine of the two embeddings.
        threshold: Cosine from which two images count as the same.
        false_accept_rate: The rate for which that threshold was calibrated.
        thresholds: All calibrated thresholds, by false-accept rate.
        timings_ms: Milliseconds by stage.
    """

    same: bool | None
    similarity: float
    threshold: float | None
    false_accept_rate: float | None
    thresholds: dict[str, float]
    timings_ms: dict[str, float]


class ItemDocument(Struct, kw_only=True, omit_defaults=True):
    """An item as the API shows it; the vector only when asked for."""

    id: ItemId
    label: str | None = None
    metadata: dict[str, Any] = {}
    vector: list[float] | None = None


class ItemPage(Struct, kw_only=True):
    """Some items; pass ``next`` as ``after`` to read on."""

    items: list[ItemDocument]
    next: int | None


class NewItem(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """An item with its vector, to store; one with a known id replaces the old one whole.

    Attributes:
        id: Its id.
        vector: Its vector; need not be normalized.
        label: Its label.
        metadata: Any other fields.
        thumbnail: A small JPEG, PNG or WebP (Base64 in JSON).
    """

    id: Id
    vector: list[float]
    label: str | None = None
    metadata: dict[str, Any] = {}
    thumbnail: Annotated[bytes, Meta(max_length=MOST_THUMBNAIL_BYTES)] | None = None


class GetItems(Struct, kw_only=True, forbid_unknown_fields=True):
    """Which items to read."""

    ids: list[Id]
    with_vectors: bool = False
    collection: CollectionName | None = None


class ItemList(Struct, kw_only=True):
    """The items in the order of the ids, null where there is none."""

    items: list[ItemDocument | None]


class UpsertVectors(Struct, kw_only=True, forbid_unknown_fields=True):
    """Several items to store at once: all of them or none."""

    items: Annotated[list[NewItem], Meta(min_length=1)]
    collection: CollectionName | None = None
    fingerprint: str | None = None


class ItemChanges(Struct, kw_only=True, forbid_unknown_fields=True):
    """Partial changes: absent fields stay; in metadata, null removes a field (JSON merge patch)."""

    label: str | msgspec.UnsetType | None = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class DeleteItems(Struct, kw_only=True, forbid_unknown_fields=True):
    """What to delete: these ids, and all that pass the filter.

    Attributes:
        ids: Items to delete; unknown ones are no error.
        filter: Delete all that pass.
        erase: Also remove every byte of them from the disk before answering.
        collection: Collection or alias.
    """

    ids: list[Id] = []
    filter: dict[str, Any] | None = None
    erase: bool = False
    collection: CollectionName | None = None


class CountItems(Struct, kw_only=True, forbid_unknown_fields=True):
    """Which items to count: all that pass the filter."""

    filter: dict[str, Any] | None = None
    collection: CollectionName | None = None


class Counted(Struct, kw_only=True):
    """How many items there are."""

    count: int


class Written(Struct, kw_only=True):
    """How many items a write stored."""

    stored: int
    ids: list[ItemId]


class ImportProgress(Struct, kw_only=True, omit_defaults=True):
    """One line of an import's answer: how far it is, and how it ended.

    Attributes:
        stored: Items that are stored durably; of equal ids that come close together, only the last counts.
        line: Line of the body, counted from 1 and blank ones included, up to which all are stored.
        done: All items are stored.
        error: Why the rest was refused; with the status and the code that a problem would have.
        refused: The line that was refused, where it is the fault of one.
    """

    stored: int
    line: int
    done: bool = False
    error: str | None = None
    status: int | None = None
    code: str | None = None
    refused: int | None = None


class Deleted(Struct, kw_only=True):
    """How many items were deleted."""

    deleted: int


class Labels(Struct, kw_only=True):
    """Labels with their number of items, most frequent first."""

    labels: dict[str, int]


class Model(Struct, kw_only=True):
    """The model that embeds.

    Attributes:
        fingerprint: Its own; vectors of another are no use here.
        dim: Length of its vectors.
        size: Of its input, in pixels: the side of a square, or [height, width].
        mode: Colour mode of its input.
        thresholds: Similarities from which two images count as the same, by false accept rate.
        backend: What runs it: eager, compiled or onnx; plain where nothing was chosen.
        choice: Why that backend: images a second of each by batch size, and its difference from the plain
            network; `provisional` is true until the fastest is known.
        info: Training and evaluation figures.
    """

    fingerprint: str
    dim: int
    size: int | list[int]
    mode: str
    thresholds: dict[str, float]
    backend: str = "plain"
    choice: dict[str, Any] | None = None
    info: dict[str, Any]


class CollectionStats(Struct):
    """A collection, and its figures where it is open; see :class:`serve.store.types.StoreStats`.

    The last four fields are earlier names of `lsn`, `memtable`, `flushed_lsn` and `field_indexes`; the next
    version leaves them out.
    """

    name: str
    state: Literal["open", "closed", "damaged"]
    items: int | None = None
    dim: int | None = None
    fingerprint: str | None = None
    index: str | None = None
    lsn: int | None = None
    segments: int | None = None
    memtable: int | None = None
    dead: int | None = None
    flushed_lsn: int | None = None
    disk_bytes: int | None = None
    field_indexes: list[str] | None = None
    trouble: str | None = None
    sequence: int | None = None
    head: int | None = None
    snapshot_sequence: int | None = None
    payload_indexes: list[str] | None = None


class CollectionList(Struct, kw_only=True):
    """All collections, the aliases that mean one, and the one that answers when a request names none."""

    collections: list[CollectionStats]
    aliases: dict[str, str]
    default: str


class NewCollection(Struct, kw_only=True, forbid_unknown_fields=True):
    """A collection to make.

    Attributes:
        name: What to call it.
        dim: Length of its vectors; the model's when absent.
        fingerprint: The model that makes its vectors; the loaded model's when ``dim`` is absent too.
        index: "Flat" (exact) or any FAISS ``index_factory`` string.
    """

    name: CollectionName
    dim: Annotated[int, Meta(ge=1, le=65536)] | None = None
    fingerprint: Annotated[str, Meta(max_length=128)] | None = None
    index: Annotated[str, Meta(max_length=128)] | None = None


class NewFieldIndex(Struct, kw_only=True, forbid_unknown_fields=True):
    """The field whose filters shall be fast (or no longer): "label" or "metadata.NAME"."""

    field: Annotated[str, Meta(min_length=1, max_length=256)]
    collection: CollectionName | None = None


class AliasTarget(Struct, kw_only=True, forbid_unknown_fields=True):
    """The collection that an alias means from now on; null removes the alias."""

    collection: CollectionName | None


class Reload(Struct, kw_only=True, forbid_unknown_fields=True):
    """Load the model's folder again, and move an alias with it."""

    alias: CollectionName | None = None
    collection: CollectionName | None = None


class Health(Struct, kw_only=True, omit_defaults=True):
    """Whether the service works; ``detail`` says what is wrong."""

    status: Literal["ok", "unavailable"]
    detail: str | None = None
