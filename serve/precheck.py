"""The precheck: a small image is embedded and searched, to find out whether the service really works."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from serve.store.types import SearchQuery

if TYPE_CHECKING:
    from serve.embedding import Embedded, EmbeddingPipeline
    from serve.searching import StoreThreads
    from serve.store.types import Store


def _canary_image(side: int = 32) -> bytes:
    """A PNG with some structure: a blank image could embed to a vector of no use."""
    ramp = np.arange(side, dtype=np.uint8) * (256 // side)
    pixels = np.stack(
        [np.tile(ramp, (side, 1)), np.tile(ramp[:, None], (1, side)), np.eye(side, dtype=np.uint8) * 255]
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


_CANARY = _canary_image()


async def precheck_model(pipeline: EmbeddingPipeline) -> str | None:
    """Embed the canary image. Returns what is wrong with its vector, or None."""
    return _fault_of(await pipeline.embed(_CANARY))


async def precheck(pipeline: EmbeddingPipeline, threads: StoreThreads, store: Store) -> str | None:
    """Embed the canary image and search the store by it. Returns what is wrong, or None."""
    embedded = await pipeline.embed(_CANARY)
    fault = _fault_of(embedded)
    if fault is not None:
        return fault
    query = SearchQuery(1, fingerprint=embedded.fingerprint)
    result = await threads.search(store, embedded.vector, query)
    if not result.hits[0] and await threads.call(store.count) > 0:
        return "the store has items but finds none"
    return None


def _fault_of(embedded: Embedded) -> str | None:
    if not np.isfinite(embedded.vector).all():
        return "the model embeds to numbers that are not finite"
    length = float(np.linalg.norm(embedded.vector))
    if abs(length - 1.0) > 1e-2:
        return f"the model embeds to vectors of length {length:.3f} instead of 1"
    return None
