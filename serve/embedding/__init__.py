"""From encoded images to vectors: decoding threads → micro-batches → network, all overlapping."""

from serve.embedding.pipeline import Embedded, EmbeddingPipeline

__all__ = ["Embedded", "EmbeddingPipeline"]
