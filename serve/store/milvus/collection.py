"""A collection inside Milvus: its fields, and what it is for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from serve.store.milvus.address import milvus_name, our_name
from serve.store.milvus.capabilities import IndexType, parse_index
from serve.store.milvus.engine import Engine
from serve.store.milvus.items import MOST_BYTES
from serve.store.protocol import DimensionMismatch, FingerprintMismatch, StoreError, StoreMissing

_PROPERTY = "kindred"
# Of the rows; another one reads them wrongly.
_FORMAT = 2
INDEX_SECONDS = 600.0
"""How long a server may take to build an index, or to read a collection into memory."""

_FIELDS = ("id", "vector", "label", "metadata", "facets", "sequence", "thumbnail")


@dataclass(frozen=True, slots=True)
class MilvusDefinition:
    """What a collection is for.

    Attributes:
        name: Our name of it.
        dim: Length of a vector.
        fingerprint: The model that makes them, if it was given.
        index: How they are searched.
    """

    name: str
    dim: int
    fingerprint: str | None
    index: IndexType

    @property
    def inside(self) -> str:
        """Milvus's name of it."""
        return milvus_name(self.name)

    def check_fingerprint(self, given: str | None) -> None:
        """Raises FingerprintMismatch where both sides name a model, and not the same."""
        if given is not None and self.fingerprint is not None and given != self.fingerprint:
            raise FingerprintMismatch(
                f"The collection holds vectors of model {self.fingerprint}, not of {given}; "
                "embed with that model or build a new collection"
            )


def create_collection(
    engine: Engine, name: str, dim: int, fingerprint: str | None, index: str | None, consistency: str
) -> MilvusDefinition:
    """Makes a new, empty collection, ready to be searched.

    Raises:
        StoreError: The engine does not build that index, or refuses the collection.
    """
    if dim < 1:
        raise StoreError("A new collection needs dim, the length of its vectors")
    chosen = parse_index(index, engine.can)
    definition = MilvusDefinition(name, dim, fingerprint, chosen)
    # The description as well: milvus-lite drops it, and an old server may drop properties it does not know.
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
    """Finds a collection, compares it with what the caller says of it, and makes it ready to be searched.

    Raises:
        StoreMissing: There is none.
        DimensionMismatch: It has another dim.
        FingerprintMismatch: It has another fingerprint.
        StoreError: It has another index, or other fields than ours.
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
        our_name(told["collection_name"]) or name,
        int(fields["vector"]["params"]["dim"]),
        kept["fingerprint"],
        parse_index(kept["index"], engine.can),
    )
    if dim is not None and dim != definition.dim:
        raise DimensionMismatch(f"The collection takes vectors of {definition.dim} numbers, not {dim}")
    definition.check_fingerprint(fingerprint)
    if index is not None and parse_index(index, engine.can) != definition.index:
        raise StoreError(
            f"The collection {name!r} has the index {definition.index}; for another one build a new "
            "collection (kindred index copy) and move the alias"
        )
    engine.call("load_collection", definition.inside, timeout=INDEX_SECONDS)
    return definition
