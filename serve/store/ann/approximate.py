"""Approximate indexes over a segment: built from a FAISS factory string, kept in a file beside the vectors.

After the factory string may come how far a search looks: `HNSW32,ef=128`, `IVF1024,SQ8,nprobe=32`. Without
it, efSearch of a graph is measured when the graph is built.

Similarities of hits are exact: hits of an index with compressed vectors are rescored with the segment's own
vectors. An HNSW graph stores no vectors; it reads the segment's memory-mapped ones.

Some factory strings make FAISS end the process or take all its memory. So only known kinds of index of sane
sizes are allowed, and an index is first built on trial over random rows in a separate process.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss as typed_faiss
import numpy as np

from serve.store.ann import flat
from serve.store.types import MOST_EFFORT, Positions, StoreError, Vectors

_log = logging.getLogger(__name__)

faiss: Any = typed_faiss  # the types it ships lack much of what it has

EXACT = "Flat"
# efSearch of an HNSW search for `_HITS` hits: the least, and the most if the vectors need more. On separate
# clusters of 20 vectors, recall@10 is 1.0 with the least (`bench_store.py`).
_VIEW = 64
_WIDEST_VIEW = 1024
_HITS = 10
# Neighbours that the construction of a graph considers. With FAISS's own 40, clusters of 200 vectors and more
# link to no other cluster, and searches that begin in a wrong one stay there: recall ends at 0.98.
_CONSTRUCTION = 100
# Fraction of that efSearch that each hit takes, where more hits are wanted.
_VIEW_PER_HIT = 1 / 16
# The recall@10 that efSearch is chosen for, and the number of queries that measure it.
_RECALL = 0.99
_PROBES = 128
# Fewest lists that a search of an inverted index visits.
_PROBED = 8
# `rows_per_neighbour` of such an index.
_LIST_ROWS = 60
# Hits that a compressed index is asked for per hit wanted, to be rescored.
_RESCORED = 4
# Rows added between two polls of `stop`; most rows for training; fewest rows per list.
_STEP = 8192
_TRAINING_ROWS = 200_000
_ROWS_PER_LIST = 39
_pointer = faiss.swig_ptr
_inverted = faiss.try_extract_index_ivf
_GRAPH = faiss.IndexHNSWFlat
_SKIP = faiss.IO_FLAG_SKIP_STORAGE
_CODES = r"(?:Flat|SQ(?:4|6|8|fp16|bf16)|PQ(?P<pieces>\d+)(?:x(?:4(?:fs)?|8))?)"
_KINDS = re.compile(
    r"(?:(?:PCAR?|RR)(?P<reduced>\d+),)?"
    r"(?:(?P<graph>HNSW(?P<links>\d+))|"
    rf"(?:IVF(?P<lists>\d+)(?:_HNSW(?P<list_links>\d+))?,)?{_CODES}(?:,RFlat|,Refine\(SQ8\))?)",
    re.ASCII,
)
_MOST_LISTS = 65_536
_MOST_LINKS = 256
# Limits of the trial of an index. It has few lists, because each needs rows for its training.
_TRIAL_ROWS = 512
_TRIAL_LISTS = 4
_TRIAL_SECONDS = 120.0  # codes of 8 bits take ten on a busy machine
_TRIAL_MEMORY = 4 * 2**30


def parse(text: str) -> tuple[str, int | None]:
    """Factory string and effort (see `FaissIndex.search`) of an index's text; None if it has no effort."""
    factory, named, effort = text.rpartition("=")
    if named and factory.endswith((",ef", ",nprobe")) and effort.isdecimal():
        return factory.rpartition(",")[0], int(effort)
    return text, None


class FaissIndex:
    """A FAISS index over the rows of `vectors`.

    Attributes:
        compressed: Whether it is no plain HNSW graph; `build` can add rows to such a graph.
        rows_per_neighbour: Rows that a scan of the segment reads in the time of exploring one neighbour.
    """

    def __init__(self, factory: str, index: Any, vectors: Vectors, effort: int | None = None) -> None:
        self.factory = factory
        self.effort = effort
        self._index = index
        self._vectors = vectors
        self._search = _search_of(index)
        self._parameters: dict[int, Any] = {}
        self.compressed = not isinstance(index, _GRAPH)
        # Exploring a neighbour compares the query with up to 2·M others, at random places in memory.
        self.rows_per_neighbour = _LIST_ROWS if self.compressed else 4 * index.hnsw.nb_neighbors(1)
        self._storage = None if self.compressed else _lend_vectors(index, vectors)
        self._inverted = _inverted(index)
        self._list_rows = np.empty(0, np.int64)
        if self._inverted is not None:
            lists = self._inverted.invlists
            self._list_rows = np.array([lists.list_size(at) for at in range(lists.nlist)])
            self.effort = effort or max(_PROBED, lists.nlist // 16)

    @classmethod
    def load(cls, path: Path, factory: str, vectors: Vectors, effort: int | None = None) -> FaissIndex:
        """Reads an index that `build` wrote for these vectors."""
        return cls(factory, faiss.read_index(str(path), _SKIP), vectors, effort)

    def least(self, k: int, effort: int | None = None) -> int:
        """Fewest neighbours that a search for `k` explores."""
        if self.compressed:
            return max(_VIEW, k)
        view = effort or self.effort or _VIEW
        return max(view, math.ceil(_VIEW_PER_HIT * view * k))

    def search(self, queries: Vectors, k: int, effort: int | None = None) -> tuple[Vectors, Positions, int]:
        """The `k` nearest rows that the index finds; see `flat.scan`.

        Args:
            queries: (n, dim) float32, unit length.
            k: Number of neighbours.
            effort: A graph's efSearch for 10 hits, or the least nprobe of an inverted index; None uses the
                collection's setting or the index's own measurement.

        Returns:
            Similarities and rows (−1 where fewer were found), and the most rows that one query was compared
            with (for a graph, efSearch).
        """
        if not self.compressed:
            view = self.least(k, effort)
            return *self._walked(queries, k, view), min(view, len(self._vectors))
        wider = min(len(self._vectors), _RESCORED * k)
        if self._inverted is None:
            found, examined = self._search(queries, wider)[1], len(self._vectors)
        else:
            found, examined = self._probed(queries, k, wider, effort or self.effort or _PROBED)
        scores = np.einsum("qd,qkd->qk", queries, self._vectors[found])
        return *flat.merge([(scores, found)], k), examined

    def _probed(self, queries: Vectors, k: int, wider: int, probes: int) -> tuple[Positions, int]:
        """Up to `wider` rows of each query from an inverted index, and the most rows in one query's lists.

        Queries whose lists hold fewer than `k` rows visit twice as many lists, and so on.
        """
        found = np.full((len(queries), wider), -1, np.int64)
        examined, waiting = 0, np.arange(len(queries))
        while len(waiting):
            probes = min(probes, len(self._list_rows))
            rows = self._search(queries[waiting], wider, params=_probing(self._index, probes))[1]
            found[waiting] = rows
            lists = self._lists(queries[waiting], probes)
            examined = max(examined, int(np.where(lists < 0, 0, self._list_rows[lists]).sum(axis=1).max()))
            waiting = waiting[(rows >= 0).sum(axis=1) < min(k, len(self._vectors))]
            if probes == len(self._list_rows):
                break
            probes *= 2
        return found, examined

    def _lists(self, queries: Vectors, probes: int) -> Positions:
        """Numbers of the lists that each query visits with this nprobe."""
        outer = faiss.downcast_index(self._index)
        if isinstance(outer, faiss.IndexRefine):
            outer = faiss.downcast_index(outer.base_index)
        if isinstance(outer, faiss.IndexPreTransform):
            for at in range(outer.chain.size()):
                queries = faiss.downcast_VectorTransform(outer.chain.at(at)).apply(queries)
        quantizer = self._inverted.quantizer
        lists: Positions = _search_of(quantizer)(queries, probes)[1]
        return lists

    def _walked(self, queries: Vectors, k: int, view: int) -> tuple[Vectors, Positions]:
        """The graph's hits. FAISS's own wrapper spends 30 µs, a tenth of a search, on checks of arguments."""
        parameters = self._parameters.get(view)
        if parameters is None:  # never changed afterwards, so searches may share it
            parameters = self._parameters[view] = faiss.SearchParametersHNSW(efSearch=view)
        similarities = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        self._index.search_c(
            len(queries), _pointer(queries), k, _pointer(similarities), _pointer(rows), parameters
        )
        return similarities, rows


def demanded_effort(index: FaissIndex, vectors: Vectors) -> int | None:
    """The efSearch with which a graph's recall@10 reaches 0.99, found by doubling; None for another index.

    Stored vectors would be too easy as queries. Each is moved in a random direction by the distance to its
    nearest neighbour.
    """
    if index.compressed:
        return None
    rng = np.random.default_rng(0)
    chosen = vectors[rng.integers(len(vectors), size=_PROBES)]
    near = flat.scan(chosen, vectors, 2)[0][:, 1]
    step = rng.standard_normal(chosen.shape, dtype=np.float32)
    step *= (np.sqrt(np.maximum(0.0, 2.0 - 2.0 * near)) / np.linalg.norm(step, axis=1))[:, np.newaxis]
    queries = chosen + step
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    floor = flat.scan(queries, vectors, _HITS)[0][:, -1:] - 1e-6
    view = _VIEW
    while view < _WIDEST_VIEW and np.mean(index.search(queries, _HITS, view)[0] >= floor) < _RECALL:
        view *= 2
    return view


def new_index(factory: str, dim: int) -> Any:
    """An empty FAISS index for inner products, with the store's settings of a graph.

    Raises:
        RuntimeError: FAISS does not know the factory string.
    """
    index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    if "HNSW" in factory:
        faiss.ParameterSpace().set_index_parameter(index, "efConstruction", _CONSTRUCTION)
    return index


def build(
    factory: str,
    vectors: Vectors,
    path: Path,
    *,
    grown: tuple[Path, int] | None = None,
    threads: int,
    stop: Callable[[], bool],
) -> bool:
    """Builds an index over vectors and writes it to a file.

    Args:
        factory: FAISS index factory string.
        vectors: (n, dim) float32, unit length.
        path: File to write; it is not synced.
        grown: File of a graph and the number of its rows (the first), to which the others are added; None
            builds a new index.
        threads: OpenMP threads.
        stop: Polled during the work; True abandons it.

    Returns:
        False if there are too few rows to train the index, or the work was abandoned.
    """
    flat.use_threads(threads)
    index, done = new_index(factory, vectors.shape[1]), 0
    if grown is not None:
        index, done = _with_own_vectors(faiss.read_index(str(grown[0]), _SKIP), vectors[: grown[1]]), grown[1]
    inverted = _inverted(index)
    if inverted is not None and len(vectors) < _ROWS_PER_LIST * inverted.nlist:
        return False
    if not index.is_trained:
        chosen = np.linspace(0, len(vectors) - 1, min(len(vectors), _TRAINING_ROWS)).astype(np.int64)
        index.train(np.ascontiguousarray(vectors[chosen]))
    for start in range(done, len(vectors), _STEP):
        if stop():
            return False
        index.add(vectors[start : start + _STEP])
    flags = _SKIP if isinstance(index, _GRAPH) else 0
    faiss.write_index(index, str(path), flags)
    return True


def _search_of(index: Any) -> Any:
    """The index's `search`, which pytorch-metric-learning replaces by a simpler one if it is loaded."""
    return getattr(index, "search_numpy", index.search)


def _probing(index: Any, effort: int) -> Any:
    """Search parameters with this nprobe for an inverted index, which may be wrapped in others."""
    if isinstance(index, faiss.IndexPreTransform):
        inner = _probing(faiss.downcast_index(index.index), effort)
        return None if inner is None else faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexRefine):
        inner = _probing(faiss.downcast_index(index.base_index), effort)
        return None if inner is None else faiss.IndexRefineSearchParameters(base_index_params=inner)
    return faiss.SearchParametersIVF(nprobe=effort) if isinstance(index, faiss.IndexIVF) else None


def _with_own_vectors(index: Any, vectors: Vectors) -> Any:
    """Gives a graph that was read without vectors a copy of them, so that rows can be added to it."""
    storage = faiss.IndexFlatIP(vectors.shape[1])
    storage.add(vectors)
    storage.this.disown()
    index.storage, index.own_fields = storage, True
    return index


def _lend_vectors(index: Any, vectors: Vectors) -> Any:
    """Makes an HNSW graph read the segment's vectors instead of a copy; keep the result alive."""
    storage = faiss.IndexFlatIP(vectors.shape[1])
    nobody = faiss.MaybeOwnedVectorUInt8().owner
    storage.codes = faiss.MaybeOwnedVectorUInt8.create_view(faiss.swig_ptr(vectors), vectors.nbytes, nobody)
    storage.ntotal = len(vectors)
    index.storage = storage
    index.own_fields = False
    return storage


def check(text: str, dim: int) -> None:
    """Checks that an index (a FAISS factory string, optionally with an effort; see `parse`) works.

    Raises:
        StoreError: Its kind is not allowed, a size is out of range, or FAISS could not build it on trial.
    """
    factory, effort = parse(text)
    if factory == EXACT and effort is None:
        return
    known = _KINDS.fullmatch(factory)
    if known is None:
        raise StoreError(f"The store builds no index {text[:60]!r}; use Flat, HNSW32 or IVF1024,SQ8")
    sizes = (
        ("links", 2, _MOST_LINKS),
        ("list_links", 2, _MOST_LINKS),
        ("lists", 1, _MOST_LISTS),
        ("pieces", 1, dim),
        ("reduced", 1, dim),
    )
    for name, least, most in sizes:
        given = known[name]
        if given is not None and not (len(given) < 10 and least <= int(given) <= most):
            raise StoreError(f"Index {text[:60]!r} has {given[:20]} where {least} to {most} may stand")
    takes = "nprobe" if known["lists"] else "ef" if known["graph"] == factory else "nothing"
    if effort is not None and not (f",{takes}=" in text and 1 <= effort <= MOST_EFFORT):
        raise StoreError(
            f"Index {text!r}: {factory} takes {takes} to say how far a search looks (1 to {MOST_EFFORT})"
        )
    _try_out(re.sub(r"IVF\d+", lambda found: f"IVF{min(_TRIAL_LISTS, int(found[0][3:]))}", factory), dim)


@functools.cache
def _try_out(factory: str, dim: int) -> None:
    """Builds and searches such an index in a separate process, once for each factory string."""
    command = [sys.executable, "-m", __name__, factory, str(dim)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    try:
        subprocess.run(  # noqa: S603  (the factory string is one of `_KINDS`)
            command, env=environment, capture_output=True, text=True, timeout=_TRIAL_SECONDS, check=True
        )
    except subprocess.SubprocessError as error:
        said = str(getattr(error, "stderr", None) or "").strip().rpartition("\n")[2]
        _log.warning("the trial of index %s failed: %s; %s", factory, error, said)
        raise StoreError(
            f"FAISS makes no index {factory!r} of vectors of {dim} numbers; use Flat, HNSW32 or IVF1024,SQ8"
        ) from None


def _limit_memory() -> None:
    """Limits this process to `_TRIAL_MEMORY` more bytes of mapped memory than now."""
    if sys.platform == "linux":
        import resource

        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + _TRIAL_MEMORY, mapped + _TRIAL_MEMORY))


def main(factory: str, dim: int) -> None:
    """Builds, reads and searches an index of random rows; the exit status tells whether that works."""
    _limit_memory()
    vectors = np.random.default_rng(0).standard_normal((_TRIAL_ROWS, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.faiss"
        if not build(factory, vectors, path, threads=1, stop=lambda: False):
            raise SystemExit("it was not built")
        rows = FaissIndex.load(path, factory, vectors).search(vectors[:4], 10)[1]
    if (rows < 0).any():
        raise SystemExit("a search found too few rows")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
