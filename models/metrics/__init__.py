"""Exact evaluation of embeddings: retrieval, verification, few-shot accuracy, calibration, clustering."""

from models.gathering import gather_by_index
from models.metrics.bootstrap import intervals, sample_of_classes
from models.metrics.calibration import Threshold, calibrate
from models.metrics.clustering import clustering_metrics
from models.metrics.exact_retrieval import RetrievalResult, evaluate_retrieval, retrieval_metrics
from models.metrics.few_shot import FewShot, few_shot_accuracy
from models.metrics.verification import (
    PairHistogram,
    all_pairs_metrics,
    pair_histogram,
    pair_similarity,
    verification_metrics,
)

__all__ = [
    "FewShot",
    "PairHistogram",
    "RetrievalResult",
    "Threshold",
    "all_pairs_metrics",
    "calibrate",
    "clustering_metrics",
    "evaluate_retrieval",
    "few_shot_accuracy",
    "gather_by_index",
    "intervals",
    "pair_histogram",
    "pair_similarity",
    "retrieval_metrics",
    "sample_of_classes",
    "verification_metrics",
]
