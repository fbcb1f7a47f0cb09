"""Searches next to the event loop: in it when they are tiny, in threads and in batches when they are not."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from serve.embedding.batcher import MicroBatcher
from serve.schemas import SearchOptions
from serve.store.protocol import ItemId, SearchResult, Store
from serve.threads import enter_worker

R = TypeVar("R")

# A search this quick costs less than handing it to a thread and back; everything slower leaves the event
# loop.
_INLINE_SECONDS = 0.0015
_SMOOTHING = 0.1


def filter_of(options: SearchOptions) -> dict[str, Any] | None:
    """The options' filter, with the label shorthand folded in."""
    if options.label is None:
        return options.filter
    by_label = {"label": options.label}
    return by_label if options.filter is None else {"and": [by_label, options.filter]}


def is_plain(options: SearchOptions) -> bool:
    """Whether a search has nothing but a query and k, so that it can share a batch with others."""
    return (
        options.label is None
        and not options.filter
        and options.min_similarity is None
        and not options.exclude
        and options.group_by is None
        and not options.exact
        and options.effort is None
    )


@dataclass(frozen=True)
class PlainSearch:
    """One query of a batch: what it must share with the others, and its vector of shape (dim,)."""

    store: Store
    k: int
    with_metadata: bool
    vector: NDArray[np.float32]


class _Pace:
    """How long a plain search of one store takes, each vector, as measured on those that ran."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def search(self, store: Store, vectors: NDArray[np.float32], k: int, with_metadata: bool) -> SearchResult:
        started = time.perf_counter()
        result = store.search(vectors, k, with_metadata=with_metadata)
        took = (time.perf_counter() - started) / len(result.hits)
        known = self.seconds or took
        # A search that was interrupted says little of the store: it counts as a somewhat slower one.
        self.seconds = known + _SMOOTHING * (min(took, 2.0 * known) - known)
        return result


class StoreThreads:
    """Runs store calls in threads of their own, and plain single searches in micro-batches.

    Args:
        workers: Threads for reads, and as many for changes.
        observe: Told the size of each batch of searches and its seconds.
    """

    def __init__(
        self, workers: int, observe: Callable[[int, float], None] = lambda _size, _seconds: None
    ) -> None:
        self._pool = ThreadPoolExecutor(workers, "store", initializer=enter_worker)
        # Changes wait for each other, and an erasure for the whole disk: no read may stand behind them.
        self._changes = ThreadPoolExecutor(workers, "change", initializer=enter_worker)
        # One thread: FAISS scans a batch in one matrix product, and a second batch would only share the
        # cores.
        self._plain: MicroBatcher[PlainSearch, SearchResult] = MicroBatcher(
            self._run_plain, max_batch=64, name="search", initializer=enter_worker, observe=observe
        )
        self._paces: WeakKeyDictionary[Store, _Pace] = WeakKeyDictionary()

    @property
    def waiting(self) -> dict[str, int]:
        """Searches that wait for a batch."""
        return {"search": self._plain.depth}

    async def call(self, function: Callable[[], R]) -> R:
        """Call ``function``, which changes nothing, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def change(self, function: Callable[[], R]) -> R:
        """Call ``function``, which changes a store, in a thread that no read needs."""
        return await asyncio.get_running_loop().run_in_executor(self._changes, function)

    def at_once(
        self, store: Store, vector: NDArray[np.float32], k: int, *, with_metadata: bool
    ) -> SearchResult | None:
        """As `plain`, in the event loop itself; None where that would hold it up."""
        pace = self._paces.get(store)
        if pace is None or pace.seconds >= _INLINE_SECONDS or k > 100:
            return None
        return pace.search(store, vector, k, with_metadata)

    async def plain(
        self, store: Store, vector: NDArray[np.float32], k: int, *, with_metadata: bool
    ) -> SearchResult:
        """Search by one vector of shape (dim,) without any condition."""
        result = self.at_once(store, vector, k, with_metadata=with_metadata)
        if result is not None:
            return result
        search = PlainSearch(store, k, with_metadata, vector)
        return await asyncio.wrap_future(self._plain.submit(search))

    async def search(
        self,
        store: Store,
        vectors: NDArray[np.float32],
        options: SearchOptions,
        fingerprint: str | None = None,
    ) -> SearchResult:
        """Search ``store``; see :meth:`serve.store.protocol.Store.search`."""
        if vectors.ndim == 1 and is_plain(options) and fingerprint in (None, store.fingerprint):
            return await self.plain(store, vectors, options.k, with_metadata=True)
        return await self.call(
            lambda: store.search(
                vectors,
                options.k,
                where=filter_of(options),
                min_similarity=options.min_similarity,
                exclude=options.exclude,
                group_by=options.group_by,
                exact=options.exact,
                effort=options.effort,
                fingerprint=fingerprint,
            )
        )

    async def search_examples(
        self, store: Store, positives: list[ItemId], negatives: list[ItemId], options: SearchOptions
    ) -> SearchResult:
        """Search by stored items; see :meth:`serve.store.protocol.Store.search_examples`."""
        return await self.call(
            lambda: store.search_examples(
                positives,
                negatives,
                options.k,
                where=filter_of(options),
                min_similarity=options.min_similarity,
                exclude=options.exclude,
                group_by=options.group_by,
                exact=options.exact,
                effort=options.effort,
            )
        )

    def close(self) -> None:
        """Finish what runs and end the threads."""
        self._plain.close()
        self._changes.shutdown()
        self._pool.shutdown()

    def _run_plain(self, searches: list[PlainSearch]) -> Sequence[SearchResult]:
        alike: dict[tuple[Store, int, bool, int], list[int]] = {}
        for position, search in enumerate(searches):
            key = (search.store, search.k, search.with_metadata, len(search.vector))
            alike.setdefault(key, []).append(position)
        results: list[SearchResult | None] = [None] * len(searches)
        for (store, k, with_metadata, _), positions in alike.items():
            vectors = np.stack([searches[position].vector for position in positions])
            found = self._paces.setdefault(store, _Pace()).search(store, vectors, k, with_metadata)
            for position, hits in zip(positions, found.hits, strict=True):
                results[position] = SearchResult([hits], found.plan)
        return [result for result in results if result is not None]
