"""Runs searches in the event loop when they are quick, else in threads and batches."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from serve.batcher import MicroBatcher, enter_worker
from serve.store.types import SearchQuery, SearchResult, Store

R = TypeVar("R")

# A quicker search costs less than handing it to a thread; a slower one leaves the event loop.
_INLINE_SECONDS = 0.0015
_SMOOTHING = 0.1


_Search = tuple[Store, SearchQuery, NDArray[np.float32]]
"""One search of a batch: the store, the query, and a vector of shape (dim,)."""


class _Pace:
    """Measured seconds of a plain search of one store, per vector."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def search(self, store: Store, vectors: NDArray[np.float32], query: SearchQuery) -> SearchResult:
        started = time.perf_counter()
        result = store.search(vectors, query)
        took = (time.perf_counter() - started) / len(result.hits)
        known = self.seconds or took
        # A search that was interrupted says little of the store: it counts as a somewhat slower one.
        self.seconds = known + _SMOOTHING * (min(took, 2.0 * known) - known)
        return result


class StoreThreads:
    """Runs store calls in ``workers`` threads of their own, and plain single searches in micro-batches."""

    def __init__(self, workers: int, observe: Callable[[int], None]) -> None:
        self._pool = ThreadPoolExecutor(workers, "store", initializer=enter_worker)
        # Changes wait for each other, and an erasure rewrites files: reads must not queue behind them.
        self._changes = ThreadPoolExecutor(workers, "change", initializer=enter_worker)
        # One thread: FAISS scans a batch in one matrix product, and a second batch would only share the
        # cores.
        self._plain: MicroBatcher[_Search, SearchResult] = MicroBatcher(
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

    async def search(self, store: Store, vectors: NDArray[np.float32], query: SearchQuery) -> SearchResult:
        """Search ``store`` by a vector of shape (dim,), or by several; see `Store.search`."""
        plain = query.is_plain and not query.exact and query.effort is None
        if vectors.ndim > 1 or not plain or query.fingerprint not in (None, store.fingerprint):
            return await self.call(lambda: store.search(vectors, query))
        pace = self._paces.get(store)
        if pace is None or pace.seconds >= _INLINE_SECONDS or query.k > 100 or not store.in_process:
            return await asyncio.wrap_future(self._plain.submit((store, query, vectors)))
        return pace.search(store, vectors, query)

    def close(self) -> None:
        """Finish what runs and end the threads."""
        self._plain.close()
        self._changes.shutdown()
        self._pool.shutdown()

    def _run_plain(self, searches: list[_Search]) -> Sequence[SearchResult]:
        alike: dict[tuple[Store, SearchQuery, int], list[int]] = {}
        for position, (store, query, vector) in enumerate(searches):
            alike.setdefault((store, query, len(vector)), []).append(position)
        results: list[SearchResult | None] = [None] * len(searches)
        for (store, query, _), positions in alike.items():
            vectors = np.stack([searches[position][2] for position in positions])
            found = self._paces.setdefault(store, _Pace()).search(store, vectors, query)
            for position, hits in zip(positions, found.hits, strict=True):
                results[position] = SearchResult([hits], found.plan)
        return [result for result in results if result is not None]
