"""From encoded images to vectors: decoding threads feed a micro-batching network thread."""

import asyncio
import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.bundle import Bundle
from models.preprocess import ImageError, decode_image
from serve.batcher import MicroBatcher, enter_worker


def _canary_image() -> bytes:
    """A PNG of noise: a blank image could embed to a vector of no use."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


_CANARY = _canary_image()


@dataclass(frozen=True)
class Embedded:
    """What the pipeline makes of one image.

    Attributes:
        vector: float32 of shape (dim,), of length 1.
        thumbnail: A small JPEG of the upright original, or None when none was asked for.
        decode_ms: Waiting for a decoding thread and decoding, in milliseconds.
        network_ms: Waiting for a batch and the forward pass, in milliseconds.
        fingerprint: The model that made the vector.
    """

    vector: NDArray[np.float32]
    thumbnail: bytes | None
    decode_ms: float
    network_ms: float
    fingerprint: str


class EmbeddingPipeline:
    """Embeds images so that decoding, the network and whatever follows overlap between requests.

    Args:
        bundle: The model.
        decode_workers: Threads that decode.
        network_batch: Most images in one forward pass.
        network_threads: OpenMP threads of a forward pass.
        network_workers: Forward passes that may run at the same time.
        observe_batch: Told the size of each batch.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        decode_workers: int,
        network_batch: int,
        network_threads: int,
        network_workers: int = 1,
        observe_batch: Callable[[int], None] = lambda _size: None,
    ) -> None:
        self.bundle = bundle
        self._active = 0
        self._decoders = ThreadPoolExecutor(decode_workers, "decode", initializer=enter_worker)
        self._network: MicroBatcher[torch.Tensor, NDArray[np.float32]] = MicroBatcher(
            lambda images: list(bundle.embed_pixels(torch.stack(images)).numpy(force=True)),
            max_batch=network_batch,
            workers=network_workers,
            name="network",
            initializer=lambda: enter_worker(network_threads),
            observe=observe_batch,
        )

    @property
    def waiting(self) -> dict[str, int]:
        """Images that wait, by stage."""
        return {"decode": self._decoders._work_queue.qsize(), "network": self._network.depth}

    async def embed(self, content: bytes, *, thumbnail: int = 0) -> Embedded:
        """Embed one encoded image.

        Args:
            content: The encoded image.
            thumbnail: Side of the thumbnail to make, in pixels; 0 makes none.

        Raises:
            ImageError: The bytes are no image that can be used.
        """
        self._active += 1
        try:
            return await self._embed(content, thumbnail)
        finally:
            self._active -= 1

    async def _embed(self, content: bytes, thumbnail: int) -> Embedded:
        embedding: Future[Embedded] = Future()
        self._decoders.submit(self._decode, content, thumbnail, embedding, time.perf_counter())
        return await asyncio.wrap_future(embedding)

    def _decode(self, content: bytes, thumbnail: int, embedding: "Future[Embedded]", started: float) -> None:
        """Decode in this thread and pass on to the network's; the event loop is only told of the end."""
        if not embedding.set_running_or_notify_cancel():
            return  # the caller has gone
        try:
            preprocess = self.bundle.preprocess
            small = None
            if thumbnail:
                limits, white_level = preprocess.limits, preprocess.white_level
                shown = decode_image(content, "RGB", limits, at_least=thumbnail, white_level=white_level)
                small = jpeg_thumbnail(shown, thumbnail)
            waiting = self._network.submit(preprocess.tensor(preprocess.open(content)))
        except BaseException as error:  # noqa: BLE001  (belongs to the caller, who waits for it)
            embedding.set_exception(error)
            return
        between = time.perf_counter()

        def finish(vector: "Future[NDArray[np.float32]]") -> None:
            error = vector.exception()
            if error is not None:
                embedding.set_exception(error)
                return
            finished = time.perf_counter()
            embedding.set_result(
                Embedded(
                    vector.result(),
                    small,
                    (between - started) * 1000.0,
                    (finished - between) * 1000.0,
                    self.bundle.fingerprint,
                )
            )

        waiting.add_done_callback(finish)

    async def embed_many(self, contents: Sequence[bytes]) -> list[Embedded | ImageError]:
        """Embed several images; a broken one gives its error in its place."""

        async def one(content: bytes) -> Embedded | ImageError:
            try:
                return await self._embed(content, 0)
            except ImageError as error:
                return error

        # Counted before the first of them runs: a drain that begins in between has to wait for all.
        self._active += 1
        try:
            return await asyncio.gather(*(one(content) for content in contents))
        finally:
            self._active -= 1

    async def precheck(self) -> tuple[Embedded, str | None]:
        """Embed a small image; returns the result, and what is wrong with its vector or None."""
        embedded = await self.embed(_CANARY)
        length = float(np.linalg.norm(embedded.vector))
        if not np.isfinite(embedded.vector).all():
            return embedded, "the model embeds to numbers that are not finite"
        if abs(length - 1.0) > 1e-2:
            return embedded, f"the model embeds to vectors of length {length:.3f} instead of 1"
        return embedded, None

    async def drain(self) -> None:
        """Finish what is inside and end the threads; new images must go elsewhere."""
        while self._active:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(self._decoders.shutdown)
        await asyncio.to_thread(self._network.close)


def jpeg_thumbnail(image: Image.Image, side: int) -> bytes:
    """A JPEG of ``image`` that fits a square of ``side`` pixels; small images keep their size."""
    copy = image.convert("RGB")
    copy.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    copy.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
