"""Re-ranking against a direct computation of its definition, and its effect on clustered data."""

import numpy as np
import pytest

from models.metrics import retrieval_metrics
from models.metrics.reranking import AGREEMENT, EXPANSION, NEIGHBOURS, PLAIN_WEIGHT


def direct_scores(unit: np.ndarray) -> np.ndarray:
    """The definition, set by set."""
    cosine = unit @ unit.T
    distance = (1 - cosine) / 2
    order = np.argsort(distance, axis=1, kind="stable")

    def mutual(item: int, k: int) -> set[int]:
        return {g for g in order[item, : k + 1] if item in order[g, : k + 1]}

    encoded = np.zeros_like(cosine)
    for item in range(len(unit)):
        members = mutual(item, NEIGHBOURS)
        union = set(members)
        for other in members:
            theirs = mutual(other, NEIGHBOURS // 2)
            if len(theirs & members) >= AGREEMENT * len(theirs):
                union |= theirs
        for other in union:
            last = distance[item, order[item, NEIGHBOURS]]
            encoded[item, other] = np.exp(-min(distance[item, other], last))
        encoded[item] /= encoded[item].sum()
    encoded = np.stack([encoded[order[item, :EXPANSION]].mean(axis=0) for item in range(len(unit))])
    overlap = np.minimum(encoded[:, None], encoded[None]).sum(axis=2)
    return -(1 - PLAIN_WEIGHT) * (1 - overlap / (2 - overlap)) - PLAIN_WEIGHT * distance


@pytest.mark.parametrize("apart", [False, True])
def test_equals_the_definition(apart: bool) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 12, 90)
    vectors = (rng.normal(size=(12, 6))[labels] + 0.9 * rng.normal(size=(90, 6))).astype(np.float32)
    unit = vectors.astype(float) / np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    queries = np.arange(60, 90) if apart else np.arange(90)
    gallery = np.arange(60) if apart else np.arange(90)
    scores = direct_scores(unit)[np.ix_(queries, gallery)]
    match = labels[queries][:, None] == labels[gallery][None]
    if not apart:
        np.fill_diagonal(scores, -np.inf)
    hits = np.take_along_axis(match, np.argsort(-scores, axis=1), axis=1)
    options = {"gallery_embeddings": vectors[gallery], "gallery_labels": labels[gallery]} if apart else {}
    found = retrieval_metrics(vectors[queries], labels[queries], (1, 3), rerank=True, **options)
    assert found["recall@1"] == pytest.approx(hits[:, 0].mean())
    assert found["recall@3"] == pytest.approx(hits[:, :3].any(1).mean())


def test_helps_where_classes_are_chains() -> None:
    """Mutual neighbourhoods follow a class along its length, where plain distances jump across."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 20)
    vectors = rng.normal(size=(20, 32))[labels] + 1.2 * rng.normal(size=(400, 32))
    plain, better = (retrieval_metrics(vectors, labels, rerank=rerank) for rerank in (False, True))
    assert better["map@r"] > plain["map@r"]
