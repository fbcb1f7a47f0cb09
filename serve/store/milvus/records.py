"""Items as Milvus rows, and back."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from serve.store.milvus.facets import facets_of
from serve.store.milvus.keys import MOST_BYTES, id_of, key_of
from serve.store.protocol import Item, StoreError
from serve.store.rows import MOST_METADATA_BYTES, check_batch

Row = dict[str, Any]

MOST_THUMBNAIL_BYTES = MOST_BYTES // 4 * 3
"""Milvus has no type for bytes, so thumbnails are base64 text, 4 characters for 3 bytes."""

# A message may have 64 MiB; this leaves room for what surrounds the numbers.
_MOST_MESSAGE_BYTES = 16 * 2**20
_MOST_ROWS = 5_000


def checked_rows(items: Sequence[Item], dim: int) -> list[Row]:
    """Rows of items, each id once; of equal ids the last one stays. The write's number is still missing.

    Raises:
        StoreError: What `FaissStore` refuses, and what is larger than Milvus takes.
    """
    batch = check_batch(items, dim)
    return [
        {
            "id": key_of(item_id),
            "vector": vector,
            "label": _short(label, "label"),
            **metadata_fields(metadata),
            "thumbnail": _packed(thumbnail),
        }
        for item_id, vector, label, metadata, thumbnail in zip(
            batch.ids, batch.vectors, batch.labels, batch.metadata, batch.thumbnails, strict=True
        )
    ]


def metadata_fields(text: str | None) -> Row:
    """The two columns that hold metadata, from its checked text.

    Raises:
        StoreError: Its facets are larger than Milvus takes.
    """
    metadata = {} if text is None else json.loads(text)
    facets = facets_of(metadata)
    size = len(json.dumps(facets, ensure_ascii=False).encode())
    if size > MOST_METADATA_BYTES:
        raise StoreError(f"Metadata of {size:,} bytes as facets; Milvus takes {MOST_METADATA_BYTES:,}")
    return {"metadata": metadata, "facets": facets}


def messages(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows in runs that one message each can carry."""
    run: list[Row] = []
    size = 0
    for row in rows:
        weight = 4 * len(row["vector"]) + len(row["thumbnail"] or "") + 256
        # Most metadata is small, and measuring it costs more than sending it.
        weight += 2 * len(str(row["metadata"])) if row["metadata"] else 0
        if run and (size + weight > _MOST_MESSAGE_BYTES or len(run) == _MOST_ROWS):
            yield run
            run, size = [], 0
        run.append(row)
        size += weight
    if run:
        yield run


def item_of(row: Mapping[str, Any]) -> Item:
    """The item that a row holds; fields that were not read stay empty."""
    vector = row.get("vector")
    return Item(
        id_of(row["id"]),
        None if vector is None else np.asarray(vector, dtype=np.float32),
        row.get("label"),
        row.get("metadata") or {},
    )


def unpacked(thumbnail: str | None) -> bytes | None:
    """A thumbnail's bytes."""
    return None if thumbnail is None else base64.b64decode(thumbnail)


def _packed(thumbnail: bytes | None) -> str | None:
    if thumbnail is None:
        return None
    if len(thumbnail) > MOST_THUMBNAIL_BYTES:
        raise StoreError(
            f"A thumbnail of {len(thumbnail):,} bytes; Milvus takes {MOST_THUMBNAIL_BYTES:,}, make it smaller"
        )
    return base64.b64encode(thumbnail).decode("ascii")


def _short(text: str | None, what: str) -> str | None:
    if text is not None and len(text) > MOST_BYTES // 4 and len(text.encode()) > MOST_BYTES:
        raise StoreError(f"A {what} of {len(text.encode()):,} bytes; Milvus takes {MOST_BYTES:,}")
    return text
