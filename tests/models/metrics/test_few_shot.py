"""Few-shot accuracy against a naive twin, and what its episodes are made of."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InputError
from models.metrics.few_shot import FewShot, draw_episodes, episode_accuracies, few_shot_accuracy


def naive(vectors: np.ndarray, episodes: tuple[np.ndarray, np.ndarray]) -> list[float]:
    """One query, one class, one example at a time."""
    unit = [[float(x) for x in row] for row in vectors / np.linalg.norm(vectors, axis=1, keepdims=True)]
    accuracies = []
    for support, query in zip(*episodes, strict=True):
        right = 0
        for own, rows in enumerate(query):
            for row in rows:
                scores = []
                for examples in support:
                    mean = [sum(unit[e][d] for e in examples) for d in range(len(unit[0]))]
                    length = sum(x * x for x in mean) ** 0.5 or 1.0
                    scores.append(sum(a * b for a, b in zip(unit[row], mean, strict=True)) / length)
                best = max(score for label, score in enumerate(scores) if label != own)
                right += scores[own] - best > 1e-6
        accuracies.append(right / query.size)
    return accuracies


@given(
    seed=st.integers(0, 1000),
    n_way=st.integers(2, 5),
    shots=st.integers(1, 3),
    queries=st.integers(1, 3),
    duplicates=st.booleans(),
)
def test_equals_the_naive_twin(seed: int, n_way: int, shots: int, queries: int, duplicates: bool) -> None:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(6), 7)
    vectors = rng.integers(-2, 3, (42, 3)) if duplicates else rng.normal(size=(42, 3))
    vectors = np.where((vectors == 0).all(axis=1, keepdims=True), 1, vectors).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors.astype(np.float32)
    episodes = draw_episodes(labels, FewShot(n_way, shots, 5, queries), seed=seed)
    found = episode_accuracies(torch.from_numpy(vectors), *episodes)
    assert found.tolist() == pytest.approx(naive(vectors.astype(np.float64), episodes), abs=1e-9)


@given(seed=st.integers(0, 1000), queries=st.integers(1, 3))
def test_episodes_hold_what_the_protocol_says(seed: int, queries: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(12), rng.integers(4, 9, 12)))
    groups = labels // 4
    episodes = draw_episodes(labels, FewShot(2, 1, 20, queries, "group"), groups, seed)
    counts = np.bincount(labels)
    for support, query in zip(*episodes, strict=True):
        rows = np.concatenate([support, query], axis=1)
        assert len(np.unique(rows)) == rows.size
        assert (labels[rows] == labels[rows[:, :1]]).all()
        assert len(np.unique(labels[rows[:, 0]])) == 2
        assert len(np.unique(groups[rows])) == 1
        assert (counts[labels[rows]] >= 1 + queries).all()


def test_all_groups_and_classes_take_part() -> None:
    labels = np.repeat(np.arange(30), 4)
    support, _ = draw_episodes(labels, FewShot(5, 1, 300, 1, "group"), labels // 10)
    assert set(np.unique(labels[support])) == set(range(30))
    share = np.bincount(labels[support[:, 0, 0]] // 10) / 300
    assert share == pytest.approx(np.full(3, 1 / 3), abs=0.1)


def test_perfect_chance_and_collapsed_embeddings() -> None:
    labels = np.repeat(np.arange(50), 4)
    rng = np.random.default_rng(0)
    protocol = FewShot(20, 1, 500)
    assert few_shot_accuracy(torch.eye(50)[labels], labels, protocol)[0] == 1
    assert few_shot_accuracy(torch.ones(200, 8), labels, protocol)[0] == 0
    mean, (low, high) = few_shot_accuracy(torch.from_numpy(rng.normal(size=(200, 64))), labels, protocol)
    assert low < mean < high
    assert mean == pytest.approx(1 / 20, abs=0.02)


def test_what_cannot_be_drawn_is_said() -> None:
    labels = np.repeat(np.arange(10), 3)
    with pytest.raises(InputError, match="fewer than 20 classes of 2 images"):
        draw_episodes(labels, FewShot(20))
    with pytest.raises(InputError, match="in any alphabet"):
        draw_episodes(labels, FewShot(6, within="alphabet"), labels // 5)
    with pytest.raises(InputError, match="a class lies in two groups"):
        draw_episodes(labels, FewShot(2, within="drawer"), np.arange(30) % 3)
    with pytest.raises(InputError, match="shots is 0"):
        draw_episodes(labels, FewShot(2, 0))
    with pytest.raises(InputError, match="at least 2 classes"):
        draw_episodes(labels, FewShot(1))
