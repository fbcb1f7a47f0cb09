"""The embedding pipeline and its micro-batcher."""

import asyncio
import threading
import time

import numpy as np
import pytest

from models.preprocess import ImageError
from serve.batcher import MicroBatcher, enter_worker
from serve.embedding import EmbeddingPipeline


def test_results_come_back_in_order_whatever_the_batches():
    batcher = MicroBatcher(lambda items: [item * 2 for item in items], max_batch=7, workers=2)
    futures = [batcher.submit(number) for number in range(100)]
    assert [future.result(5) for future in futures] == [number * 2 for number in range(100)]
    batcher.close()
    with pytest.raises(RuntimeError):
        batcher.submit(1)


def test_what_waits_becomes_one_batch():
    gate, sizes = threading.Event(), []

    def run(items):
        gate.wait(5)
        return items

    batcher = MicroBatcher(run, max_batch=8, observe=sizes.append)
    first = batcher.submit(0)
    while batcher.depth:  # the worker has taken the first alone
        time.sleep(0.001)
    rest = [batcher.submit(number) for number in range(1, 12)]
    gate.set()
    assert [future.result(5) for future in [first, *rest]] == list(range(12))
    batcher.close()
    assert sizes == [1, 8, 3]


def test_a_bad_item_spoils_only_itself():
    def run(items):
        if 3 in items:
            raise ValueError("three")
        return items

    batcher = MicroBatcher(run, max_batch=10)
    futures = [batcher.submit(number) for number in range(6)]
    for number, future in enumerate(futures):
        if number == 3:
            with pytest.raises(ValueError, match="three"):
                future.result(5)
        else:
            assert future.result(5) == number
    batcher.close()


def test_a_cancelled_item_is_not_computed():
    gate, seen = threading.Event(), []

    def run(items):
        gate.wait(5)
        seen.extend(items)
        return items

    batcher = MicroBatcher(run, max_batch=1)
    first, second, third = (batcher.submit(number) for number in range(3))
    while batcher.depth > 2:
        time.sleep(0.001)
    assert second.cancel()
    gate.set()
    assert (first.result(5), third.result(5)) == (0, 2)
    batcher.close()
    assert seen == [0, 2]


def test_vectors_equal_the_bundles_own(bundle, picture):
    """The index is built by ``Bundle.embed``, queries come through here: both must agree."""
    images = [picture(seed, size=(30 + seed, 60)) for seed in range(20)]

    async def embed():
        pipeline = EmbeddingPipeline(bundle, decode_workers=2, network_batch=6, network_threads=1)
        results = await pipeline.embed_many([*images, b"broken"])
        thumbnailed = await pipeline.embed(images[0], thumbnail=16)
        await pipeline.drain()
        return results, thumbnailed

    (*results, broken), thumbnailed = asyncio.run(embed())
    assert isinstance(broken, ImageError)
    np.testing.assert_allclose([one.vector for one in results], bundle.embed(images), atol=1e-5)
    np.testing.assert_allclose(thumbnailed.vector, results[0].vector, atol=1e-6)
    assert thumbnailed.thumbnail.startswith(b"\xff\xd8")
    assert results[0].fingerprint == bundle.fingerprint


def test_a_drain_waits_for_images_that_have_not_begun(bundle, picture):
    """A batch that was accepted just before the model changed must not meet closed threads."""

    async def embed():
        pipeline = EmbeddingPipeline(bundle, decode_workers=1, network_batch=4, network_threads=1)
        batch = asyncio.ensure_future(pipeline.embed_many([picture(seed) for seed in range(4)]))
        await asyncio.sleep(0)  # the batch has begun, none of its images has
        await pipeline.drain()
        return await batch

    assert [one.vector.shape for one in asyncio.run(embed())] == [(32,)] * 4


def test_the_thread_count_is_set_for_each_worker():
    """FAISS counts threads for each calling thread: a worker that set none would take all cores."""
    import faiss

    counts = []

    def work():
        enter_worker(1)
        counts.append(faiss.omp_get_max_threads())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert counts == [1]
