"""The live index's recall, measured against an exact scan on queries near its own vectors."""

import asyncio
import functools

import numpy as np

from serve.observability import log
from serve.service import Service
from serve.store.types import Store, Unsupported, Vectors

K = 10
SAMPLES = 16
# Distance of a query from a stored vector, relative to that vector's nearest neighbour. With this value the
# recall comes closest to that of held-out vectors.
_STEP = 0.7
# More similar than this is the same vector once more.
_SAME = 1.0 - 1e-6


def measure(store: Store, samples: int = SAMPLES, k: int = K) -> tuple[float, int]:
    """Recall@k of ``store.search`` on queries that resemble new vectors of the collection.

    Stored vectors themselves would be too easy, because an approximate index contains them. Items drawn at
    random are therefore moved in a random direction. Items that are equally similar may stand for each other,
    so a found neighbour counts when its similarity reaches the exact scan's k-th.

    Returns:
        The recall in [0, 1], and the number of queries behind it (0 for an empty store).
    """
    drawn = [item.vector for item in store.sample(samples, with_vectors=True)]
    if not drawn:
        return 1.0, 0
    queries = _moved(store, np.asarray(drawn, dtype=np.float32))
    found = store.search(queries, k, with_metadata=False)
    truth = store.search(queries, k, exact=True, with_metadata=False)
    shares = []
    for hits, exact in zip(found.hits, truth.hits, strict=True):
        if exact:
            floor = exact[-1].similarity - 1e-6
            shares.append(sum(hit.similarity >= floor for hit in hits) / len(exact))
    return (float(np.mean(shares)) if shares else 1.0), len(shares)


def _moved(store: Store, vectors: Vectors) -> Vectors:
    """Vectors beside these stored ones; both of shape (n, dim)."""
    near = store.search(vectors, K, exact=True, with_metadata=False).hits
    nearest = [next((hit.similarity for hit in hits if hit.similarity < _SAME), 1.0) for hits in near]
    distances = np.sqrt(2.0 - 2.0 * np.asarray(nearest))  # of unit vectors with these cosines
    directions = np.random.default_rng().standard_normal(vectors.shape)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return (vectors + _STEP * distances[:, np.newaxis] * directions).astype(np.float32)


async def watch(service: Service, seconds: float) -> None:
    """Measure every open collection's recall again and again, into the metrics."""
    while True:
        await asyncio.sleep(seconds)
        for name, store in service.catalogue.open_stores().items():
            try:
                recall, queries = await service.threads.call(functools.partial(measure, store))
            except Unsupported as error:
                log.info("recall of %s is not measured: %s", name, error)
                continue
            except Exception:  # noqa: BLE001  (watching must not end, nor harm the service)
                log.warning("recall of %s could not be measured", name, exc_info=True)
                continue
            if queries:
                service.metrics.recall.labels(name).set(recall)
                service.metrics.recall_samples.labels(name).inc(queries)
