"""SemiHardMiner against a slow loop that anyone can check by eye."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import TripletMarginMiner
from torch import Tensor

import models.mining as mining
from models.mining import SemiHardMiner, semi_hard_triplets


def naive(distances: Tensor, positives: Tensor, negatives: Tensor) -> list[tuple[int, int, int]]:
    """FaceNet's rule, pair by pair: the nearest negative farther than the positive, else the farthest."""
    triplets = []
    rows = distances.tolist()
    for a, row in enumerate(rows):
        others = [n for n in range(len(row)) if negatives[a, n]]
        for p in range(len(row)):
            if not positives[a, p] or not others:
                continue
            farther = [n for n in others if row[n] > row[p]]
            if farther:
                chosen = min(farther, key=lambda n: (row[n], n))
            else:
                chosen = max(others, key=lambda n: (row[n], -n))
            triplets.append((a, p, chosen))
    return triplets


def masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    same = labels[:, None] == labels[None, :]
    return same & ~torch.eye(len(labels), dtype=torch.bool), ~same


@pytest.fixture(params=[0, 1000], ids=["sorting", "scanning"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both searches have to give the same triplets, whatever the number of positives."""
    monkeypatch.setattr(mining, "SCANS", request.param)


@pytest.mark.usefixtures("either_way")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(1, 24),
    classes=st.integers(1, 8),
    levels=st.integers(1, 6),
    seed=st.integers(0, 10_000),
)
def test_equals_the_naive_twin_with_many_ties(size: int, classes: int, levels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (size,), generator=generator)
    distances = torch.randint(levels, (size, size), generator=generator).float()
    positives, negatives = masks(labels)
    found = torch.stack(semi_hard_triplets(distances, positives, negatives), dim=1).tolist()
    assert [tuple(row) for row in found] == naive(distances, positives, negatives)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_naive_twin_on_embeddings(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    embeddings = torch.randn(60, 8, dtype=dtype)
    embeddings[10] = embeddings[3]  # a duplicate
    labels = torch.arange(60) % 13
    miner = SemiHardMiner()
    positives, negatives = masks(labels)
    expected = naive(miner._distances(embeddings, embeddings), positives, negatives)
    assert [tuple(row) for row in torch.stack(miner(embeddings, labels), 1).tolist()] == expected


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 0, 0], [0, 1, 2, 3], [5]],
    ids=["one class", "singletons only", "one item"],
)
def test_batches_without_triplets_give_none(labels: list[int]) -> None:
    a, p, n = SemiHardMiner()(torch.randn(len(labels), 4), torch.tensor(labels))
    assert len(a) == len(p) == len(n) == 0
    assert a.dtype == torch.int64


@pytest.mark.usefixtures("either_way")
def test_collapsed_embeddings_still_give_one_triplet_a_pair() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2])
    a, p, n = SemiHardMiner()(torch.ones(5, 4), labels)
    assert torch.stack((a, p, n), 1).tolist() == [[0, 1, 2], [1, 0, 2], [2, 3, 0], [3, 2, 0]]


@pytest.mark.usefixtures("either_way")
def test_references_from_a_memory() -> None:
    """Anchors against other embeddings: nothing is left out as an item's own self."""
    torch.manual_seed(0)
    anchors, references = torch.randn(5, 4), torch.randn(9, 4)
    labels, reference_labels = torch.arange(5) % 3, torch.arange(9) % 3
    miner = SemiHardMiner()
    same = labels[:, None] == reference_labels[None, :]
    expected = naive(miner._distances(anchors, references), same, ~same)
    found = torch.stack(miner(anchors, labels, references, reference_labels), 1).tolist()
    assert [tuple(row) for row in found] == expected


def test_similarities_are_turned_into_distances() -> None:
    torch.manual_seed(0)
    embeddings, labels = torch.randn(20, 6).double(), torch.arange(20) % 4
    by_cosine = SemiHardMiner(distance=CosineSimilarity())(embeddings, labels)
    by_distance = SemiHardMiner()(embeddings, labels)
    assert all(torch.equal(x, y) for x, y in zip(by_cosine, by_distance, strict=True))


def test_is_the_nearest_of_the_librarys_semihard_triplets() -> None:
    """Where the library finds semi-hard triplets of a pair, ours is the one with the nearest negative."""
    torch.manual_seed(0)
    embeddings, labels = torch.randn(24, 6).double(), torch.arange(24) % 6
    miner = SemiHardMiner()
    distances = miner._distances(embeddings, embeddings)
    library = TripletMarginMiner(margin=10.0, type_of_triplets="semihard", distance=miner.distance)
    nearest: dict[tuple[int, int], int] = {}
    for a, p, n in zip(*(t.tolist() for t in library(embeddings, labels)), strict=True):
        if (a, p) not in nearest or distances[a, n] < distances[a, nearest[a, p]]:
            nearest[a, p] = n
    ours = {(a, p): n for a, p, n in zip(*(t.tolist() for t in miner(embeddings, labels)), strict=True)}
    assert nearest.items() <= ours.items()
    assert len(ours) == 24 * 3


def test_stands_where_a_library_miner_stands() -> None:
    embeddings = torch.randn(12, 4, requires_grad=True)
    labels = torch.arange(12) % 3
    loss = TripletMarginLoss(0.2)(embeddings, labels, SemiHardMiner()(embeddings, labels))
    loss.backward()
    assert embeddings.grad is not None


def test_diverged_embeddings_keep_negatives_negative() -> None:
    embeddings = torch.full((6, 4), float("nan"))
    labels = torch.arange(6) % 2
    a, p, n = SemiHardMiner()(embeddings, labels)
    assert (labels[a] == labels[p]).all()
    assert (labels[a] != labels[n]).all()
