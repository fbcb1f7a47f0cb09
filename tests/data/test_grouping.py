import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.grouping import similarity_groups


@given(classes=st.integers(1, 60), size=st.integers(1, 9), seed=st.integers(0, 3))
def test_groups_are_no_larger_than_asked_and_mostly_full(classes: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = similarity_groups(rng.normal(size=(classes, 4)), size, rng)
    counts = np.bincount(groups)
    assert counts.sum() == classes
    assert counts.min() >= 1
    assert counts.max() <= size
    assert (counts < size).sum() <= 1


def test_groups_follow_the_embeddings() -> None:
    rng = np.random.default_rng(0)
    centres = np.repeat(10 * rng.normal(size=(8, 16)), 4, axis=0)
    groups = similarity_groups(centres + 0.1 * rng.normal(size=centres.shape), 4, rng)
    together = np.mean([len(set(groups[i : i + 4].tolist())) == 1 for i in range(0, 32, 4)])
    assert together >= 0.5
    same = groups[:, None] == groups[None]
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    assert distance[same].mean() < 0.5 * distance.mean()
    again = similarity_groups(centres, 4, np.random.default_rng(1))
    assert again.shape == groups.shape


def test_identical_embeddings_are_still_split() -> None:
    groups = similarity_groups(np.zeros((10, 3)), 4, np.random.default_rng(0))
    assert sorted(np.bincount(groups).tolist()) == [2, 4, 4]
