"""What an engine can do, by its version, and the index types that it builds."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

from serve.store.types import StoreError

EXACT = "FLAT"
OLDEST = (2, 3)
"""The first version with upsert, COSINE and count(*)."""

_VERSION = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do; engines differ in these points.

    Attributes:
        name: The engine and its version, for messages.
        embedded: Whether it is milvus-lite in this process.
        indexes: The index types for vectors that it builds.
        label_index: Its index type for labels.
        lists_in_json: Whether an expression may use `in [...]` on a JSON path.
        indexes_metadata: Whether it has indexes for paths inside JSON.
        drops_indexes: Whether it can drop an index of a loaded collection.
    """

    name: str
    embedded: bool
    indexes: tuple[str, ...]
    label_index: str
    lists_in_json: bool
    indexes_metadata: bool
    drops_indexes: bool


LITE = Capabilities(
    "milvus-lite",
    embedded=True,
    # It accepts the name of any index and scans every vector where it cannot build it.
    indexes=("FLAT", "HNSW", "HNSW_SQ", "IVF_FLAT", "IVF_SQ8"),
    label_index="INVERTED",
    lists_in_json=False,
    indexes_metadata=False,
    drops_indexes=False,
)

# Index types by the version that added them. Those for GPUs also need a GPU build.
_INDEXES = {
    (2, 3): (
        *("FLAT", "HNSW", "IVF_FLAT", "IVF_SQ8", "IVF_PQ", "SCANN", "DISKANN", "AUTOINDEX"),
        *("GPU_IVF_FLAT", "GPU_IVF_PQ"),
    ),
    (2, 4): ("GPU_CAGRA", "GPU_BRUTE_FORCE"),
    (2, 5): ("HNSW_SQ", "HNSW_PQ", "HNSW_PRQ"),
    (2, 6): ("IVF_RABITQ",),
}


def capabilities(told: str) -> Capabilities:
    """What a server of this version (such as `v2.3.5`) can do; StoreError if it is too old or no version."""
    found = _VERSION.search(told)
    if not found:
        raise StoreError(f"The Milvus server tells no version ({told[:40]!r}); use a released version")
    version = (int(found[1]), int(found[2]))
    if version < OLDEST:
        raise StoreError(f"The Milvus server has version {told[:40]}; update it to 2.3 or newer")
    return Capabilities(
        f"Milvus {version[0]}.{version[1]}",
        embedded=False,
        indexes=tuple(name for since, names in _INDEXES.items() if version >= since for name in names),
        label_index="INVERTED" if version >= (2, 4) else "Trie",
        lists_in_json=True,
        indexes_metadata=version >= (2, 6),
        drops_indexes=version >= (2, 4),
    )


_Parameters: TypeAlias = dict[str, int | float | str]

_BUILD: dict[str, _Parameters] = {"HNSW": {"M": 32, "efConstruction": 200}, "IVF": {"nlist": 128}}
_SEARCH: dict[str, _Parameters] = {"HNSW": {"ef": 64}, "IVF": {"nprobe": 16}}
_SEARCH_NAMES = {"ef", "nprobe", "search_list", "reorder_k", "itopk_size", "search_width", "rbq_query_bits"}
_PARAMETER = re.compile(r"([A-Za-z_]+)=([A-Za-z0-9_.]+)")
_FACTORY_HNSW = re.compile(r"HNSW(\d+)")


@dataclass(frozen=True, slots=True)
class IndexType:
    """An index type with its parameters.

    Attributes:
        name: Milvus's name of it.
        build: Build parameters.
        search: Search parameters.
    """

    name: str
    build: _Parameters = field(default_factory=dict)
    search: _Parameters = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether a search compares the query with every vector."""
        return self.name in ("FLAT", "GPU_BRUTE_FORCE")

    def __str__(self) -> str:
        return ",".join(
            [self.name, *(f"{name}={value}" for name, value in (self.build | self.search).items())]
        )

    def search_parameters(self, k: int, effort: int | None = None) -> _Parameters:
        """Parameters of a search for `k` neighbours; a graph's `ef` must be at least `k`."""
        found = dict(self.search)
        if effort is not None:
            found |= {name: effort for name in ("ef", "nprobe") if name in found}
        if "ef" in found:
            found["ef"] = max(int(found["ef"]), k)
        return found


def parse_index(text: str | None, engine: Capabilities) -> IndexType:
    """Parses an index type; None means exact.

    `Flat` and `HNSW32` mean what they mean to FAISS, so that one setting serves both kinds of store.

    Raises:
        StoreError: The engine does not build it, or a parameter is malformed.
    """
    head, *rest = (EXACT if text is None else text).split(",")
    name = head.strip().upper()
    given: _Parameters = {}
    factory = _FACTORY_HNSW.fullmatch(name)
    if factory:
        name, given = "HNSW", {"M": int(factory[1])}
    if name not in engine.indexes:
        raise StoreError(f"{engine.name} builds no index {head!r}; use one of {', '.join(engine.indexes)}")
    for part in rest:
        found = _PARAMETER.fullmatch(part.strip())
        if not found:
            raise StoreError(f"Index parameter {part!r} of {text!r} is malformed; write NAME=VALUE")
        given[found[1]] = _number(found[2])
    family = name.removeprefix("GPU_").partition("_")[0]
    found_type = IndexType(name, dict(_BUILD.get(family, {})), dict(_SEARCH.get(family, {})))
    for parameter, value in given.items():
        (found_type.search if parameter in _SEARCH_NAMES else found_type.build)[parameter] = value
    return found_type


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
