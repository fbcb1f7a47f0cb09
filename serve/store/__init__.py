"""Durable stores of embeddings: `types` says what a store does, `collection` has the embedded one."""
