"""Exact evaluation of embeddings: retrieval, verification, clustering. Needs torch and numpy alone."""

from models.metrics.distributed import gather_by_index
from models.metrics.retrieval import RetrievalResult, evaluate_retrieval, retrieval_metrics

__all__ = ["RetrievalResult", "evaluate_retrieval", "gather_by_index", "retrieval_metrics"]
