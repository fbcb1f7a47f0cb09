"""Collections inside Milvus: their fields and settings, and items as their rows.

*Ids* become text keys: a string gets the prefix `s`, an integer `i` and 16 hexadecimal digits of its value
plus 2⁶³. Both kinds sort as the ids themselves do, so that ranges over ids stay ranges over keys.

*Labels and thumbnails* get the prefix `s` too; an absent one is the empty text, because Milvus has no null
before 2.5.

*Metadata* is kept as it is and also as facets: flat, each value under a name that includes its kind. Engines
and versions of Milvus differ in how they compare a number with a text inside JSON and how they negate a
condition on an absent field; with facets neither matters:

    {"price": 3, "new": true, "tags": ["a", 1], "shop": {"city": "B"}, "a b": 1}
    {"n:price": 3, "n:new": 1, "l:tags": ["ta", "n1"], "o:tags": 1, "o:shop": 1, "t:shop.city": "B",
     "n:a%000020b": 1}

`n:` holds numbers (true and false as 1 and 0), `t:` texts, `l:` the plain values of a list as texts with
their kind, `o:` marks a list or an object. An absent or null value has no facet. A character other than
letters, digits, `_` and `-` is written as `%` and its number in six hexadecimal digits, so that dots only
separate names.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.store.items import MOST_METADATA_BYTES, Definition, check_items
from serve.store.milvus.capabilities import IndexType, parse_index
from serve.store.milvus.engine import Engine, milvus_name, our_name
from serve.store.types import Item, ItemId, StoreError, StoreMissing

Row = dict[str, Any]

MOST_BYTES = 65_535
"""Milvus's limit for a text, in UTF-8."""

_SHIFT = 2**63

NUMBER, TEXT, LIST, PRESENT = "n:", "t:", "l:", "o:"
_ODD = re.compile(r"[^\w-]")
_WRITTEN = re.compile(r"%([0-9a-f]{6})")
MOST_THUMBNAIL_BYTES = MOST_BYTES // 4 * 3
"""Milvus has no type for bytes, so thumbnails are base64 text, 4 characters for 3 bytes."""

# A message may have 64 MiB; this leaves room for its overhead.
_MOST_MESSAGE_BYTES = 16 * 2**20
_MOST_ROWS = 5_000

_PROPERTY = "kindred"
# Version of the rows' format.
_FORMAT = 2
INDEX_SECONDS = 600.0
"""Timeout for a server to build an index or to load a collection into memory."""

_FIELDS = ("id", "vector", "label", "metadata", "facets", "sequence", "thumbnail")


@dataclass(frozen=True, slots=True)
class MilvusDefinition(Definition):
    """Settings of a collection; `name` is Kindred's name of it."""

    name: str
    index: IndexType

    @property
    def inside(self) -> str:
        """Milvus's name of it."""
        return milvus_name(self.name)


def create_collection(
    engine: Engine, name: str, dim: int, fingerprint: str | None, index: str | None, consistency: str
) -> MilvusDefinition:
    """Makes a new, empty collection; StoreError if the engine does not build that index."""
    if dim < 1:
        raise StoreError("A new collection needs dim, the length of its vectors")
    chosen = parse_index(index, engine.can)
    definition = MilvusDefinition(dim, fingerprint, name, chosen)
    # Both as a property and as the description: milvus-lite drops the description, an old server perhaps the
    # property.
    note = json.dumps({"format": _FORMAT, "fingerprint": fingerprint, "index": str(chosen)})
    client = engine.pymilvus.MilvusClient
    indexes = client.prepare_index_params()
    indexes.add_index("vector", index_type=chosen.name, metric_type="COSINE", params=chosen.build)
    if not engine.can.embedded:
        indexes.add_index("label", index_type=engine.can.label_index)
        indexes.add_index("sequence", index_type="STL_SORT")
    engine.call(
        "create_collection",
        definition.inside,
        schema=_schema(engine, dim, note),
        index_params=indexes,
        consistency_level=consistency,
        properties={_PROPERTY: note},
    )
    return definition


def _schema(engine: Engine, dim: int, note: str) -> Any:
    kind = engine.pymilvus.DataType
    schema = engine.pymilvus.MilvusClient.create_schema(
        auto_id=False, enable_dynamic_field=False, description=note
    )
    schema.add_field("id", kind.VARCHAR, is_primary=True, max_length=MOST_BYTES)
    schema.add_field("vector", kind.FLOAT_VECTOR, dim=dim)
    schema.add_field("label", kind.VARCHAR, max_length=MOST_BYTES)
    schema.add_field("metadata", kind.JSON)
    schema.add_field("facets", kind.JSON)
    schema.add_field("sequence", kind.INT64)
    # Thumbnails are read one by one and never searched: on a server they stay on disk.
    schema.add_field("thumbnail", kind.VARCHAR, max_length=MOST_BYTES, mmap_enabled=True)
    return schema


def open_collection(
    engine: Engine, name: str, dim: int | None, fingerprint: str | None, index: str | None
) -> MilvusDefinition:
    """Finds a collection, checks it against the caller's expectations, and loads it for searches.

    Raises:
        StoreMissing: There is none.
        DimensionMismatch: It has another dim.
        FingerprintMismatch: It has another fingerprint.
        StoreError: It has another index, or Kindred did not make it.
    """
    inside = milvus_name(name)
    if not engine.call("has_collection", inside):
        raise StoreMissing(f"There is no collection {name!r} in {engine.address.uri}")
    told = engine.call("describe_collection", inside)
    fields = {field["name"]: field for field in told["fields"]}
    note = (told.get("properties") or {}).get(_PROPERTY) or told.get("description") or ""
    if set(fields) != set(_FIELDS) or not note:
        raise StoreError(f"The collection {inside} was not made by Kindred; choose another name")
    kept = json.loads(note)
    if kept.get("format") != _FORMAT:
        raise StoreError(
            f"The collection {inside} has the form of another version of Kindred; with that version, copy it "
            "to a folder (kindred index copy), and from there with this one"
        )
    definition = MilvusDefinition(
        int(fields["vector"]["params"]["dim"]),
        kept["fingerprint"],
        our_name(told["collection_name"]) or name,
        parse_index(kept["index"], engine.can),
    )
    definition.check(dim, fingerprint)
    if index is not None and parse_index(index, engine.can) != definition.index:
        raise StoreError(
            f"The collection {name!r} has the index {definition.index}; for another one build a new "
            "collection (kindred index copy) and move the alias"
        )
    engine.call("load_collection", definition.inside, timeout=INDEX_SECONDS)
    return definition


def key_of(item_id: ItemId) -> str:
    """The key of a checked id; StoreError if it is longer than Milvus takes."""
    if isinstance(item_id, int):
        return f"i{item_id + _SHIFT:016x}"
    key = "s" + item_id
    if len(key) > MOST_BYTES // 4 and len(key.encode()) > MOST_BYTES:
        raise StoreError(f"The id {item_id[:40]!r}… is longer than the {MOST_BYTES - 1:,} bytes Milvus takes")
    return key


def id_of(key: str) -> ItemId:
    """The inverse of `key_of`."""
    return key[1:] if key[0] == "s" else int(key[1:], 16) - _SHIFT


def facets_of(metadata: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Facets of plain JSON metadata."""
    facets: dict[str, Any] = {}
    for name, value in metadata.items():
        path = prefix + facet_name([name])
        if isinstance(value, str):
            facets[TEXT + path] = value
        elif isinstance(value, int | float):
            facets[NUMBER + path] = plain_number(value)
        elif isinstance(value, list):
            facets[PRESENT + path] = 1
            facets[LIST + path] = [listed(part) for part in value if isinstance(part, str | int | float)]
        elif isinstance(value, dict):
            facets |= {PRESENT + path: 1, **facets_of(value, path + ".")}
    return facets


def facet_name(names: Iterable[str]) -> str:
    """Nested names as one, without the kind."""
    return ".".join(_ODD.sub(lambda found: f"%{ord(found[0]):06x}", name) for name in names)


def names_in(facet: str) -> list[str]:
    """The inverse of `facet_name`."""
    return [_WRITTEN.sub(lambda found: chr(int(found[1], 16)), name) for name in facet.split(".")]


def listed(value: str | float) -> str:
    """A plain value of a list; equal values have equal texts."""
    return "t" + value if isinstance(value, str) else "n" + repr(plain_number(value))


def plain_number(value: float) -> int | float:
    """The canonical form of equal numbers: 1 for true, 3 for 3.0, a float beyond 64 bits."""
    fits = -(2**63) <= value < 2**63
    return int(value) if fits and value == int(value) else float(value)


def checked_rows(items: Sequence[Item], dim: int) -> list[Row]:
    """Rows of items without `sequence`, each id once; of equal ids the last one stays.

    Raises:
        StoreError: An item that `FaissStore` refuses too, or one that is larger than Milvus takes.
    """
    checked = check_items(items, dim)
    return [
        {
            "id": key_of(item_id),
            "vector": vector,
            "label": optional_text(label),
            **metadata_fields(metadata),
            "thumbnail": optional_text(_packed(thumbnail)),
        }
        for item_id, vector, label, metadata, thumbnail in zip(
            checked.ids, checked.vectors, checked.labels, checked.metadata, checked.thumbnails, strict=True
        )
    ]


def metadata_fields(text: str | None) -> Row:
    """The two fields that hold metadata, from its checked text; StoreError if too large for Milvus."""
    metadata = {} if text is None else json.loads(text)
    facets = facets_of(metadata)
    size = len(json.dumps(facets, ensure_ascii=False).encode())
    if size > MOST_METADATA_BYTES:
        raise StoreError(f"Metadata of {size:,} bytes as facets; Milvus takes {MOST_METADATA_BYTES:,}")
    return {"metadata": metadata, "facets": facets}


def messages(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows in batches that each fit into one message."""
    run: list[Row] = []
    size = 0
    for row in rows:
        weight = 4 * len(row["vector"]) + len(row["thumbnail"]) + 256
        # An estimate: measuring metadata costs more than sending it.
        weight += 2 * len(str(row["metadata"])) if row["metadata"] else 0
        if run and (size + weight > _MOST_MESSAGE_BYTES or len(run) == _MOST_ROWS):
            yield run
            run, size = [], 0
        run.append(row)
        size += weight
    if run:
        yield run


def item_of(row: Mapping[str, Any]) -> Item:
    """The item of a row; fields that were not read stay empty."""
    vector = row.get("vector")
    return Item(
        id_of(row["id"]),
        None if vector is None else np.asarray(vector, dtype=np.float32),
        text_of(row.get("label")),
        row.get("metadata") or {},
    )


def optional_text(text: str | None) -> str:
    """A label or thumbnail in the form stored in Milvus; StoreError if it is too long for that."""
    kept = "" if text is None else "s" + text
    if len(kept) > MOST_BYTES // 4 and len(kept.encode()) > MOST_BYTES:
        raise StoreError(f"A label of {len(kept.encode()) - 1:,} bytes; Milvus takes {MOST_BYTES - 1:,}")
    return kept


def text_of(kept: str | None) -> str | None:
    """The inverse of `optional_text`; None also for a field that was not read."""
    return kept[1:] if kept else None


def thumbnail_of(kept: str) -> bytes | None:
    """The bytes of a thumbnail in the form stored in Milvus."""
    text = text_of(kept)
    return None if text is None else base64.b64decode(text)


def _packed(thumbnail: bytes | None) -> str | None:
    if thumbnail is None:
        return None
    if len(thumbnail) > MOST_THUMBNAIL_BYTES:
        raise StoreError(
            f"A thumbnail of {len(thumbnail):,} bytes; Milvus takes {MOST_THUMBNAIL_BYTES:,}, make it smaller"
        )
    return base64.b64encode(thumbnail).decode("ascii")
