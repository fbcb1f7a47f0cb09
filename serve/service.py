"""The service's parts, made at the start and shared by all endpoints."""

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import replace

import faiss
import torch

from models.bundle import Bundle
from models.errors import InputError
from serve.admission import Admission
from serve.auth import Keys
from serve.connections import Connections
from serve.embedding import EmbeddingPipeline
from serve.measuring import measure_backends
from serve.observability import Metrics, log
from serve.searching import StoreThreads
from serve.settings import Settings
from serve.store.catalogue import Catalogue
from serve.store.milvus.milvus_catalogue import MilvusCatalogue
from serve.store.types import FingerprintMismatch, Store, StoreError
from serve.uploads import Uploads

AnyCatalogue = Catalogue | MilvusCatalogue

# Seconds after which a waiting thread gets the interpreter's lock. With Python's 5 ms, the event loop would
# answer in bursts while images are decoded.
_SWITCH_SECONDS = 0.0005


def load_bundle(settings: Settings, meanwhile: str = "eager") -> Bundle:
    """The settings' model, ready to serve; "auto" is the backend ``meanwhile`` until the fastest is known.

    Raises:
        InputError: There is no such bundle, or the backend cannot run it.
    """
    bundle = Bundle.load(settings.bundle, settings.device, trust_code=settings.trust_code)
    return _optimized(settings, bundle, meanwhile)


def _optimized(settings: Settings, bundle: Bundle, meanwhile: str) -> Bundle:
    """The model on the settings' backend; for "auto" the fastest, if it is known, else ``meanwhile``."""
    if settings.backend == "auto" and meanwhile == "plain":
        return bundle
    torch.set_num_threads(settings.threads_of_network())  # for which the backend is chosen
    return bundle.optimize(settings.backend, workers=settings.network_workers, meanwhile=meanwhile)


class Service:
    """A model, its collections (closed at the end), and the machinery around them."""

    def __init__(self, settings: Settings, bundle: Bundle, catalogue: AnyCatalogue) -> None:
        sys.setswitchinterval(_SWITCH_SECONDS)
        torch.set_num_threads(settings.threads_of_network())
        faiss.omp_set_num_threads(1)
        self.settings = settings
        self.keys = Keys(settings)
        self.metrics = Metrics()
        self.uploads = Uploads(settings)
        self.connections = Connections(
            settings.max_connections, settings.head_seconds, settings.body_seconds, self.uploads.sweep
        )
        self.catalogue = catalogue
        self.threads = StoreThreads(
            max(2, settings.cores()), observe=self.metrics.batch_size.labels("search").observe
        )
        self.pipeline = self._pipeline(bundle)
        self.precheck: asyncio.Future[str | None] | None = None
        self.precheck_expires = 0.0  # on the loop's clock
        self._opening: dict[str, asyncio.Future[Store]] = {}
        self.admission = Admission(settings.latency_budget_ms)
        self._finding: asyncio.Task[None] | None = None

    @property
    def bundle(self) -> Bundle:
        """The model in use."""
        return self.pipeline.bundle

    async def store(self, name: str | None = None) -> Store:
        """The collection (or alias) called ``name``, the default one for None; StoreMissing if there is none.

        Opening one takes as long as loading its index: it happens in a thread, once for all waiting requests.
        """
        name = name or self.settings.collection
        store = self.catalogue.opened(name)
        if store is not None:
            return store
        opening = self._opening.get(name)
        if opening is None:
            opening = asyncio.ensure_future(asyncio.to_thread(self.catalogue.collection, name))
            self._opening[name] = opening
            opening.add_done_callback(lambda _: self._opening.pop(name))
        return await asyncio.shield(opening)

    async def reload(self, alias: str | None = None, collection: str | None = None) -> None:
        """Load the bundle's folder again and replace the model in use, without a gap.

        The new model is prechecked first: this warms it up, and one whose vectors are unusable never serves.

        Args:
            alias: Move this alias in the same step, so that a new model's collection takes over with it.
            collection: Where the alias then points.

        Raises:
            InputError: The folder is no bundle, its model is broken, or the default collection would be of
                another model. The old model stays in use.
        """
        if (alias is None) != (collection is None):
            raise InputError("reload: an alias and its collection go together; name both or neither")
        default = self.settings.collection
        target = collection if collection is not None and alias == default else default
        bundle = await asyncio.to_thread(load_bundle, self.settings, self.bundle.backend)
        # Opening a collection takes as long as loading its index.
        await asyncio.to_thread(self.catalogue.collection, target)

        def move_alias() -> None:
            opened = self.catalogue.opened(target)
            kept = opened.fingerprint if opened is not None else None
            if kept not in (None, bundle.fingerprint):
                raise FingerprintMismatch(
                    f"collection {target} is of model {kept}, {self.settings.bundle} of "
                    f"{bundle.fingerprint}; fill a new collection with the new model's vectors, and name it"
                )
            if alias is not None:
                self.catalogue.set_alias(alias, collection)

        await self._replace(bundle, move_alias)
        self.find_backend()

    async def _replace(self, bundle: Bundle, admit: Callable[[], None]) -> None:
        """Put a model into use that passes the precheck, unless ``admit`` raises right before the change."""
        fresh = self._pipeline(bundle)
        try:
            _, fault = await fresh.precheck()
            if fault:
                raise InputError(f"{self.settings.bundle}: {fault}; the old model stays")
            # No await from here on: model and alias change together for every request.
            admit()
        except BaseException:
            await fresh.drain()
            raise
        retired, self.pipeline = self.pipeline, fresh
        await retired.drain()

    def find_backend(self) -> None:
        """Where the backend is provisional, begin to measure the backends, and then change to the fastest."""
        if self._finding is None or self._finding.done():
            self._finding = asyncio.create_task(self._find_backend())

    async def _find_backend(self) -> None:
        while (choice := self.bundle.choice) is not None and choice.provisional:
            before = self.bundle
            try:
                await self._change_to_fastest(before)
            except Exception as error:  # noqa: BLE001  (the backend in use works)
                if self.bundle is before:  # else a reload has brought another model, which has its own turn
                    log.warning("backend %s stays: %s", before.backend, error)
                    return

    async def _change_to_fastest(self, before: Bundle) -> None:
        def refuse_after_reload() -> None:
            if self.bundle is not before:
                raise InputError("a reload has replaced the model")

        log.info(
            "model %s runs on %s until a process of low priority has found the fastest backend",
            before.fingerprint,
            before.backend,
        )
        await measure_backends(self.settings)
        plain = replace(before, runner=None)
        fast = await asyncio.to_thread(_optimized, self.settings, plain, before.backend)
        if fast.choice is None or fast.choice.provisional:
            raise InputError(f"{self.settings.bundle} holds another model than the one in use; reload it")
        await self._replace(fast, refuse_after_reload)
        log.info(
            "model %s: backend %s → %s, images a second by batch size: %s",
            before.fingerprint,
            before.backend,
            fast.backend,
            json.dumps(fast.choice.images_per_second),
        )

    def refresh_gauges(self) -> None:
        """Bring the gauges that are read rather than counted up to date."""
        for stage, depth in {**self.pipeline.waiting, **self.threads.waiting}.items():
            self.metrics.queue_depth.labels(stage).set(depth)
        self.metrics.inside.set(self.admission.inside)
        self.metrics.connections.set(len(self.connections))
        self.metrics.uploads.set(len(self.uploads.open))
        for gauge in (self.metrics.items, self.metrics.index_trouble):
            gauge.clear()  # collections may have been dropped
        for name, store in self.catalogue.open_stores().items():
            try:
                stats = store.stats()
                self.metrics.items.labels(name).set(stats.items)
                self.metrics.index_trouble.labels(name).set(stats.trouble is not None)
            except StoreError as error:  # the other collections are still counted
                log.warning("items of %s are not counted: %s", name, error)

    async def aclose(self) -> None:
        """Finish what runs, then close the collections."""
        if self._finding is not None:
            self._finding.cancel()
            await asyncio.wait([self._finding])
        await self.pipeline.drain()
        await asyncio.to_thread(self.threads.close)
        await asyncio.to_thread(self.catalogue.close)

    def _pipeline(self, bundle: Bundle) -> EmbeddingPipeline:
        return EmbeddingPipeline(
            bundle,
            decode_workers=self.settings.decode_workers or self.settings.cores(),
            network_batch=self.settings.network_batch,
            network_threads=self.settings.threads_of_network(),
            network_workers=self.settings.network_workers,
            observe_batch=self.metrics.batch_size.labels("network").observe,
        )
