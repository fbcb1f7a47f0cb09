"""Durable stores of embeddings: what they promise is in `protocol`, how to open one in `faiss_store`."""
