"""The service's parts, put together once at start and shared by all endpoints."""

import asyncio
import logging

from models.bundle import Bundle
from serve.admission import Admission
from serve.auth import Keys
from serve.embedding import EmbeddingPipeline
from serve.observability import Metrics
from serve.problems import Problem
from serve.searching import StoreThreads
from serve.settings import Settings
from serve.store.protocol import Store
from serve.threads import set_policy

log = logging.getLogger("kindred.serve")


class Service:
    """A model, its stores, and the machinery around them.

    Args:
        settings: What the operator decided.
        bundle: The model.
        store: The default collection.
    """

    def __init__(self, settings: Settings, bundle: Bundle, store: Store) -> None:
        cores = settings.cores()
        network_threads = settings.network_threads or cores
        set_policy(network_threads)
        self.settings = settings
        self.bundle = bundle
        self.keys = Keys.from_settings(settings)
        self.metrics = Metrics()
        self.stores: dict[str, Store] = {settings.collection: store}
        self.threads = StoreThreads(max(2, cores))
        self.pipeline = EmbeddingPipeline(
            bundle,
            decode_workers=settings.decode_workers or cores,
            network_batch=settings.network_batch,
            network_threads=network_threads,
            observe_batch=self._observe_batch,
        )
        self.admission = Admission(settings.latency_budget_ms, always=2 * cores)

    def _observe_batch(self, size: int, _seconds: float) -> None:
        self.metrics.batch_size.labels("network").observe(size)

    def store(self, name: str | None = None) -> Store:
        """The collection (or alias) called ``name``, the default one for None.

        Raises:
            Problem: 404, there is none of that name.
        """
        wanted = name or self.settings.collection
        store = self.stores.get(wanted)
        if store is None:
            raise Problem(
                404,
                "collection-missing",
                f"collection {wanted}: there is none; GET /v1/collections lists all",
            )
        return store

    def refresh_gauges(self) -> None:
        """Bring the gauges that are read rather than counted up to date."""
        for stage, depth in self.pipeline.waiting.items():
            self.metrics.queue_depth.labels(stage).set(depth)
        self.metrics.inside.set(self.admission.inside)
        for name, store in self.stores.items():
            self.metrics.items.labels(name).set(store.count())

    async def aclose(self) -> None:
        """Finish what runs, then close the stores."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """The same, for callers without an event loop."""
        self.pipeline.close()
        self.threads.close()
        for store in self.stores.values():
            store.close()
