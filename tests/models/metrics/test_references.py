"""The same numbers as pytorch-metric-learning and torchmetrics on shared cases."""

import numpy as np
import pytest
import torch
import torchmetrics.functional.retrieval as reference
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from models.metrics import clustering_metrics, evaluate_retrieval, retrieval_metrics
from models.metrics.exact_retrieval import EVERY_METRIC


def embeddings(seed: int, size: int = 1500, classes: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size)
    vectors = rng.normal(size=(classes, 24))[labels] + 1.5 * rng.normal(size=(size, 24))
    return torch.from_numpy(vectors).float(), torch.from_numpy(labels)


@pytest.mark.parametrize("apart", [False, True])
def test_equals_pytorch_metric_learning(apart: bool) -> None:
    vectors, labels = embeddings(0)
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r", "r_precision", "mean_reciprocal_rank"),
        k=None,
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity()),
    )
    if apart:
        wanted = calculator.get_accuracy(vectors[:500], labels[:500], vectors[500:], labels[500:])
        found = retrieval_metrics(
            vectors[:500],
            labels[:500],
            gallery_embeddings=vectors[500:],
            gallery_labels=labels[500:],
            metrics=EVERY_METRIC,
        )
    else:
        wanted = calculator.get_accuracy(vectors, labels)
        found = retrieval_metrics(vectors, labels, metrics=EVERY_METRIC)
    assert found["recall@1"] == pytest.approx(wanted["precision_at_1"], abs=1e-6)
    assert found["map@r"] == pytest.approx(wanted["mean_average_precision_at_r"], abs=1e-6)
    assert found["r_precision"] == pytest.approx(wanted["r_precision"], abs=1e-6)
    assert found["mrr"] == pytest.approx(wanted["mean_reciprocal_rank"], abs=1e-6)


def test_equals_torchmetrics() -> None:
    vectors, labels = embeddings(1, size=400, classes=40)
    result = evaluate_retrieval(vectors, labels, (1, 3, 10), metrics=EVERY_METRIC)
    unit = torch.nn.functional.normalize(vectors.double())
    wanted: dict[str, list[torch.Tensor]] = {name: [] for name in result.values}
    for row in result.rows.tolist():
        others = torch.arange(len(labels)) != row
        similarity, match = (unit @ unit[row])[others], (labels == labels[row])[others]
        wanted["r_precision"].append(reference.retrieval_r_precision(similarity, match))
        wanted["mrr"].append(reference.retrieval_reciprocal_rank(similarity, match))
        for k in (1, 3, 10):
            wanted[f"recall@{k}"].append(reference.retrieval_hit_rate(similarity, match, top_k=k))
            wanted[f"precision@{k}"].append(reference.retrieval_precision(similarity, match, top_k=k))
            wanted[f"ndcg@{k}"].append(reference.retrieval_normalized_dcg(similarity, match, top_k=k))
    for name, values in wanted.items():
        if values:
            torch.testing.assert_close(
                result.values[name].float(), torch.stack(values).float(), atol=1e-6, rtol=0
            )


def test_clusters_of_separated_classes_are_perfect() -> None:
    labels = np.repeat(np.arange(4), 10)
    found = clustering_metrics(
        np.eye(4)[labels] + 0.01 * np.random.default_rng(0).normal(size=(40, 4)), labels
    )
    assert found == pytest.approx({"nmi": 1, "ami": 1})
