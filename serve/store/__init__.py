"""Durable stores of embeddings: `protocol` says what a store does, `faiss_store` is the embedded one."""
