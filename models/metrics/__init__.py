"""Exact evaluation of embeddings: retrieval, verification, few-shot accuracy, calibration, clustering."""

from models.metrics.calibration import Threshold, calibrate
from models.metrics.distributed import gather_by_index
from models.metrics.few_shot import FewShot, few_shot_accuracy
from models.metrics.retrieval import RetrievalResult, evaluate_retrieval, retrieval_metrics
from models.metrics.verification import all_pairs_metrics, pair_similarity, verification_metrics

__all__ = [
    "FewShot",
    "RetrievalResult",
    "Threshold",
    "all_pairs_metrics",
    "calibrate",
    "evaluate_retrieval",
    "few_shot_accuracy",
    "gather_by_index",
    "pair_similarity",
    "retrieval_metrics",
    "verification_metrics",
]
