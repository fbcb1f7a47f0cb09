"""The live index's recall, measured on samples of its own vectors against an exact scan."""

import asyncio
import functools
import random
from collections.abc import Sequence

import numpy as np

from serve.observability import log
from serve.service import Service
from serve.store.protocol import Store, Unsupported, Vectors

K = 10
SAMPLES = 16


def measure(store: Store, samples: int = SAMPLES, k: int = K) -> tuple[float, int]:
    """Recall@k of ``store.search`` on stored vectors drawn at random.

    Items that are equally similar may stand for each other, so a found neighbour counts when its similarity
    reaches the exact scan's k-th.

    Returns:
        The recall in [0, 1], and the number of queries behind it (0 for an empty store).
    """
    last = store.stats().sequence
    queries: list[Vectors | Sequence[float]] = []
    for _ in range(samples):
        page = store.scroll(random.randint(0, max(0, last - 1)), 1, with_vectors=True)  # noqa: S311
        queries.extend(item.vector for item in page.items if item.vector is not None)
    if not queries:
        return 1.0, 0
    vectors = np.asarray(queries, dtype=np.float32)
    found = store.search(vectors, k, with_metadata=False)
    truth = store.search(vectors, k, exact=True, with_metadata=False)
    shares = []
    for hits, exact in zip(found.hits, truth.hits, strict=True):
        if exact:
            floor = exact[-1].similarity - 1e-6
            shares.append(sum(hit.similarity >= floor for hit in hits) / len(exact))
    return (float(np.mean(shares)) if shares else 1.0), len(shares)


async def watch(service: Service, seconds: float) -> None:
    """Measure every open collection's recall again and again, into the metrics."""
    while True:
        await asyncio.sleep(seconds)
        for name, store in service.collections.open_stores().items():
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
