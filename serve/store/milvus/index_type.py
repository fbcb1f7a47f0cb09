"""Index types by engine, and the text that names one: `HNSW`, or `HNSW,M=32,efConstruction=300,ef=128`.

milvus-lite accepts the name of any index and scans every vector where it cannot build it; what it builds is
listed here and tested, and everything else is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

from serve.store.protocol import StoreError

EXACT = "FLAT"

EMBEDDED = ("FLAT", "HNSW", "HNSW_SQ", "IVF_FLAT", "IVF_SQ8")
"""What milvus-lite really builds."""

SERVER = (
    *EMBEDDED,
    "HNSW_PQ",
    "HNSW_PRQ",
    "IVF_PQ",
    "IVF_RABITQ",
    "SCANN",
    "DISKANN",
    "AUTOINDEX",
    "GPU_CAGRA",
    "GPU_IVF_FLAT",
    "GPU_IVF_PQ",
    "GPU_BRUTE_FORCE",
)
"""What a server is asked for; whether its build has it, it says itself."""

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
        build: Parameters of its construction.
        search: Parameters of a search.
    """

    name: str
    build: _Parameters = field(default_factory=dict)
    search: _Parameters = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether a search with it compares the query with every vector."""
        return self.name in ("FLAT", "GPU_BRUTE_FORCE")

    def __str__(self) -> str:
        return ",".join(
            [self.name, *(f"{name}={value}" for name, value in (self.build | self.search).items())]
        )

    def search_parameters(self, k: int, effort: int | None = None) -> _Parameters:
        """Parameters of a search for `k` neighbours; a graph must look at no fewer. See `Store.search`."""
        found = dict(self.search)
        if effort is not None:
            found |= {name: effort for name in ("ef", "nprobe") if name in found}
        if "ef" in found:
            found["ef"] = max(int(found["ef"]), k)
        return found


def parse_index(text: str | None, *, embedded: bool) -> IndexType:
    """The index type that a text names; None means exact.

    `Flat` and `HNSW32` mean what they mean to FAISS, so that one setting serves both kinds of store.

    Raises:
        StoreError: The engine does not build it, or a parameter is malformed.
    """
    head, *rest = (EXACT if text is None else text).split(",")
    name, known = head.strip().upper(), EMBEDDED if embedded else SERVER
    given: _Parameters = {}
    factory = _FACTORY_HNSW.fullmatch(name)
    if factory:
        name, given = "HNSW", {"M": int(factory[1])}
    if name not in known:
        where = "milvus-lite does not build" if embedded else "Milvus knows no"
        raise StoreError(f"{where} index {head!r}; use one of {', '.join(known)}")
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
