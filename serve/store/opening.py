"""Opens a store by what the user calls it: a folder of this machine, or the address of a Milvus."""

from __future__ import annotations

import os
from pathlib import Path

from serve.store.catalogue import Catalogue
from serve.store.definition import Tuning
from serve.store.faiss_store import FaissStore
from serve.store.milvus.address import TOKEN, is_address
from serve.store.milvus.catalogue import MilvusCatalogue
from serve.store.milvus.store import Consistency, MilvusStore

_DEFAULT = Tuning()


def open_store(
    place: str | Path,
    dim: int | None = None,
    fingerprint: str | None = None,
    index: str | None = None,
    *,
    collection: str = "default",
    create: bool = True,
    read_only: bool = False,
) -> FaissStore | MilvusStore:
    """Opens (or creates) one collection.

    Args:
        place: A folder, `file:PATH` (milvus-lite) or `milvus://HOST[:PORT][/DATABASE]`; the token of a server
            comes from the environment variable KINDRED_MILVUS_TOKEN.
        dim: Length of a vector; required for a new collection, checked on an old one.
        fingerprint: The model that makes the vectors; kept by a new collection, checked on an old one.
        index: A FAISS factory string or a Milvus index type; None means exact for a new collection.
        collection: Its name or alias.
        create: Create what does not exist.
        read_only: Only look: a folder may then belong to another process, and nothing is created.

    Raises:
        StoreError: See `FaissStore.open` and `MilvusStore.open`.
    """
    if is_address(place):
        return MilvusStore.open(
            str(place),
            dim,
            fingerprint,
            index,
            collection=collection,
            create=create and not read_only,
            token=os.environ.get(TOKEN, ""),
        )
    return FaissStore.open(
        place, dim, fingerprint, index, collection=collection, create=create, read_only=read_only
    )


def open_catalogue(
    place: str | Path,
    *,
    token: str = "",
    timeout: float = 30.0,
    consistency: Consistency = "Strong",
    tuning: Tuning = _DEFAULT,
) -> Catalogue | MilvusCatalogue:
    """Opens all collections of a folder or of a Milvus.

    Args:
        place: As for `open_store`.
        token: `USER:PASSWORD` or an API key of a server.
        timeout: Seconds that one call to a server may take.
        consistency: Of new collections on a server.
        tuning: Of the collections of a folder.

    Raises:
        StoreError: See `Catalogue` and `MilvusCatalogue`.
    """
    if is_address(place):
        return MilvusCatalogue(str(place), token=token, timeout=timeout, consistency=consistency)
    return Catalogue(place, tuning=tuning)
