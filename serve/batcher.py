"""Micro-batching: items that wait while the worker is busy become the next batch."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

import faiss

T = TypeVar("T")
R = TypeVar("R")


class MicroBatcher(Generic[T, R]):
    """Collects single items into batches for a function that is cheaper per item in bulk.

    No timer waits for a batch to fill: a lone item starts at once, and batches grow by themselves exactly
    when the worker is the bottleneck.

    Args:
        run: Takes a list of items and returns as many results, in order. Called in the batcher's own threads.
        max_batch: Most items in one call.
        workers: Threads; more than one lets batches overlap.
        name: Of the threads.
        initializer: Called once in each thread before its first batch.
        observe: Told the size of each batch.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Sequence[R]],
        *,
        max_batch: int,
        workers: int = 1,
        name: str = "batcher",
        initializer: Callable[[], None] = lambda: None,
        observe: Callable[[int], None] = lambda _size: None,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._initializer = initializer
        self._observe = observe
        self._waiting: deque[tuple[T, Future[R]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Items that wait for a batch."""
        return len(self._waiting)

    def submit(self, item: T) -> "Future[R]":
        """Queue one item; a closed batcher raises RuntimeError."""
        future: Future[R] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append((item, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Finish what waits, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _take(self) -> list[tuple[T, "Future[R]"]]:
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            size = min(len(self._waiting), self._max_batch)
            return [self._waiting.popleft() for _ in range(size)]

    def _work(self) -> None:
        self._initializer()
        while taken := self._take():
            # Items whose caller has gone (a closed connection) are skipped.
            batch = [(item, future) for item, future in taken if future.set_running_or_notify_cancel()]
            if not batch:
                continue
            self._run_batch(batch)

    def _run_batch(self, batch: list[tuple[T, "Future[R]"]]) -> None:
        try:
            results = self._run([item for item, _ in batch])
        except BaseException as error:  # noqa: BLE001  (belongs to the callers, who wait for it)
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for one in batch:  # one bad item must not fail the others
                self._run_batch([one])
            return
        self._observe(len(batch))
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)


def enter_worker(threads: int = 1) -> None:
    """Set the OpenMP threads of the calling thread; each has its own number, so every worker calls this.

    Raises:
        RuntimeError: The number did not take, which would oversubscribe the cores under load.
    """
    faiss.omp_set_num_threads(threads)
    if faiss.omp_get_max_threads() != threads:
        raise RuntimeError(f"OpenMP gives {faiss.omp_get_max_threads()} threads where {threads} were set")
