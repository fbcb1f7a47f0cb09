"""Nearest neighbours in one segment: `flat` compares every vector, `approximate` asks a FAISS index."""
