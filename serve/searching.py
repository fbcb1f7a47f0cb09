"""Searches off the event loop, in threads that keep to the thread policy."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from serve.schemas import SearchOptions
from serve.store.protocol import ItemId, SearchResult, Store
from serve.threads import enter_worker

R = TypeVar("R")


def filter_of(options: SearchOptions) -> dict[str, Any] | None:
    """The options' filter, with the label shorthand folded in."""
    if options.label is None:
        return options.filter
    by_label = {"label": options.label}
    return by_label if options.filter is None else {"and": [by_label, options.filter]}


class StoreThreads:
    """Runs store calls in threads of their own.

    Args:
        workers: Threads.
    """

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, "store", initializer=enter_worker)

    async def call(self, function: Callable[[], R]) -> R:
        """Call ``function`` in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def search(
        self,
        store: Store,
        vectors: NDArray[np.float32],
        options: SearchOptions,
        fingerprint: str | None = None,
    ) -> SearchResult:
        """Search ``store``; see :meth:`serve.store.protocol.Store.search`."""
        return await self.call(
            lambda: store.search(
                vectors,
                options.k,
                where=filter_of(options),
                min_similarity=options.min_similarity,
                exclude=options.exclude,
                group_by=options.group_by,
                exact=options.exact,
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
            )
        )

    def close(self) -> None:
        """Finish what runs and end the threads."""
        self._pool.shutdown()
