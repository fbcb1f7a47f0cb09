"""The blocked engine equals a brute-force loop on random, tied, duplicated and degenerate inputs."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InputError
from models.metrics import evaluate_retrieval, retrieval_metrics
from models.metrics.exact_retrieval import EVERY_METRIC

MB = 2**20
KS = (1, 2, 4, 8)


def unit_vectors(vectors: Any) -> torch.Tensor:
    """Rows scaled to length one, rounded to fp32 once, as double."""
    exact = torch.as_tensor(vectors, dtype=torch.float32).double()
    return (exact / exact.norm(dim=1, keepdim=True).clamp_min(1e-300)).float().double()


def brute_force(
    queries: Any, labels: Any, gallery: Any = None, gallery_labels: Any = None, ks: Any = KS
) -> dict:
    """Every metric by definition, one query at a time, in double precision of the fp32 unit vectors."""
    unit = unit_vectors(queries)
    apart = gallery is not None
    others = unit_vectors(gallery) if apart else unit
    other_labels = gallery_labels if apart else labels
    found: dict[str, list[float]] = {}
    for q in range(len(unit)):
        ranked = []
        for g in range(len(others)):
            if apart or g != q:
                match = other_labels[g] == labels[q]
                ranked.append((-round(float(unit[q] @ others[g]), 11), match))  # a non-match sorts first
        hits = [match for _, match in sorted(ranked)]
        r = sum(hits)
        if r == 0:
            continue
        values = {
            "map@r": sum(hits[i] * sum(hits[: i + 1]) / (i + 1) for i in range(r)) / r,
            "r_precision": sum(hits[:r]) / r,
            "mrr": 1 / (hits.index(True) + 1),
        }
        for k in ks:
            values[f"recall@{k}"] = float(any(hits[:k]))
            values[f"precision@{k}"] = sum(hits[:k]) / k
            gain = sum(h / math.log2(i + 2) for i, h in enumerate(hits[:k]))
            values[f"ndcg@{k}"] = gain / sum(1 / math.log2(i + 2) for i in range(min(r, k)))
        for name, value in values.items():
            found.setdefault(name, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in found.items()} | {
        "queries": float(len(found["mrr"]))
    }


def assert_equal(found: dict[str, float], wanted: dict[str, float]) -> None:
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(3, 60),
    dim=st.integers(1, 9),
    classes=st.integers(1, 12),
    copies=st.booleans(),
    grid=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_equals_brute_force(size: int, dim: int, classes: int, copies: bool, grid: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, (size, dim)) if grid else rng.normal(size=(size, dim))
    if copies:
        vectors = vectors[rng.integers(0, max(1, size // 3), size)]
    labels = rng.integers(0, classes, size)
    if np.bincount(labels).max() < 2:
        labels[:2] = 0
    found = retrieval_metrics(vectors, labels, KS, metrics=EVERY_METRIC)
    assert_equal(found, brute_force(vectors, labels))


@pytest.mark.parametrize("kind", ["random", "duplicated", "clustered", "collapsed", "one_copy_each"])
@pytest.mark.parametrize("apart", [False, True])
def test_preselection_equals_double_precision(kind: str, apart: bool) -> None:
    """A gallery large enough for the fp32 path, against the whole ranking in double precision."""
    rng = np.random.default_rng(3)
    n, dim = 3000, 12
    labels = rng.integers(0, 700, n)
    vectors = rng.normal(size=(n, dim)).astype(np.float32)
    if kind == "duplicated":
        vectors = vectors[rng.integers(0, 400, n)]
    elif kind == "clustered":
        vectors = (rng.normal(size=(700, dim))[labels] + 1e-4 * vectors).astype(np.float32)
    elif kind == "collapsed":
        vectors = (np.ones(dim) + 1e-7 * vectors).astype(np.float32)
    elif kind == "one_copy_each":
        vectors[1::2] = vectors[::2]
    options: dict[str, Any] = {}
    if apart:
        options = {"gallery_embeddings": vectors[500:], "gallery_labels": labels[500:]}
        vectors, labels = vectors[:500], labels[:500]
    found = retrieval_metrics(vectors, labels, KS, metrics=EVERY_METRIC, memory_budget=24 * MB, **options)

    unit = unit_vectors(vectors)
    others = unit_vectors(options["gallery_embeddings"]) if apart else unit
    other_labels = options["gallery_labels"] if apart else labels
    similarity = (unit @ others.T).numpy()
    match = labels[:, None] == other_labels[None, :]
    key = similarity - 1e-12 * match
    if not apart:
        np.fill_diagonal(key, -np.inf)
        np.fill_diagonal(match, False)
    hits = np.take_along_axis(match, np.argsort(-key, axis=1, kind="stable"), axis=1)
    r = match.sum(1)
    hits, r = hits[r > 0], r[r > 0]
    ranks = np.arange(hits.shape[1])
    counted = hits & (ranks < r[:, None])
    wanted = {
        "recall@1": hits[:, 0].mean(),
        "recall@8": hits[:, :8].any(1).mean(),
        "r_precision": (counted.sum(1) / r).mean(),
        "map@r": ((counted.cumsum(1) / (ranks + 1) * counted).sum(1) / r).mean(),
        "mrr": (1 / (hits.argmax(1) + 1)).mean(),
        "queries": float(len(hits)),
    }
    assert_equal(found, wanted)


def test_blocking_does_not_change_the_result() -> None:
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(2500, 16)), rng.integers(0, 300, 2500)
    small = evaluate_retrieval(vectors, labels, metrics=EVERY_METRIC, memory_budget=18 * MB)
    large = evaluate_retrieval(vectors, labels, metrics=EVERY_METRIC)
    for name, values in large.values.items():
        assert torch.equal(small.values[name], values), name


def test_ties_count_against_the_model_and_are_reported() -> None:
    same = np.ones((4, 2))
    result = retrieval_metrics(same, [0, 0, 1, 1], (1, 2, 3))
    assert (result["recall@1"], result["recall@2"], result["recall@3"]) == (0, 0, 1)
    assert result["tied_queries"] == 4
    assert retrieval_metrics(np.eye(4)[[0, 0, 1, 1]], [0, 0, 1, 1])["tied_queries"] == 0


def test_classes_without_a_second_member_are_excluded_and_counted() -> None:
    vectors = np.eye(5)[[0, 0, 1, 2, 3]]
    found = retrieval_metrics(vectors, ["a", "a", "b", "c", "d"])
    assert (found["queries"], found["excluded_queries"], found["recall@1"]) == (2, 3, 1)


def test_labels_above_two_to_the_24_stay_apart() -> None:
    labels = torch.tensor([2**24, 2**24, 2**24 + 1, 2**24 + 1])
    vectors = np.array([[1, 0], [0, 1], [1, 0.01], [0.01, 1]])
    assert retrieval_metrics(vectors, labels)["recall@1"] == 0
    with pytest.raises(InputError, match="whole numbers exactly"):
        retrieval_metrics(vectors, labels.float())


def test_string_labels_and_one_class_only() -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 3))
    assert retrieval_metrics(vectors, np.array(["x"] * 6))["map@r"] == 1


def test_k_larger_than_the_gallery() -> None:
    vectors, labels = np.random.default_rng(0).normal(size=(4, 3)), [0, 0, 1, 1]
    found = retrieval_metrics(vectors, labels, (1, 50), metrics=EVERY_METRIC)
    assert_equal(found, brute_force(vectors, labels, ks=(1, 50)))
    assert found["recall@50"] == 1


def test_separate_gallery_keeps_equal_vectors() -> None:
    """Only with the queries as gallery is an equal vector at the same index the query itself."""
    vectors, labels = np.eye(3), [0, 1, 2]
    found = retrieval_metrics(vectors, labels, gallery_embeddings=vectors, gallery_labels=labels)
    assert found["recall@1"] == 1


def test_label_sets_match_on_one_common_label() -> None:
    vectors = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1.0]])
    tags = [{"red", "shoe"}, {"red"}, {"hat"}, ["shoe", "hat"]]
    found = retrieval_metrics(vectors, tags, (1,), metrics=EVERY_METRIC)
    assert found["recall@1"] == 1
    assert found["r_precision"] == pytest.approx((0.5 + 1 + 1 + 1) / 4)
    many = [{n, n + 1} for n in range(200)]  # more labels than one word of bits holds
    circle = np.array([[math.cos(n / 60), math.sin(n / 60)] for n in range(200)])
    assert retrieval_metrics(circle, many, (1,))["recall@1"] == 1


def test_sampled_queries_keep_the_full_gallery() -> None:
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(300, 4)), rng.integers(0, 20, 300)
    full = evaluate_retrieval(vectors, labels)
    some = evaluate_retrieval(vectors, labels, max_queries=50, seed=1)
    assert len(some.rows) == 50
    place = {int(row): n for n, row in enumerate(full.rows)}
    chosen = [place[int(row)] for row in some.rows]
    assert torch.equal(some.values["map@r"], full.values["map@r"][chosen])


def bad_row() -> np.ndarray:
    vectors = np.ones((4, 3))
    vectors[2, 1] = np.nan
    return vectors


@pytest.mark.parametrize(
    ("vectors", "labels", "options", "message"),
    [
        (bad_row(), [0, 0, 1, 1], {}, "row 2 holds NaN"),
        ([[1.0, 2.0], [1.0]], [0, 0], {}, "same dimension"),
        (
            np.ones((2, 3)),
            [0, 0],
            {"gallery_embeddings": np.ones((2, 4)), "gallery_labels": [0, 0]},
            "3 dimensions",
        ),
        (np.ones((2, 3)), [0, 0], {"gallery_embeddings": np.ones((2, 3))}, "go together"),
        (
            np.ones((2, 3)),
            [0, 0],
            {"gallery_embeddings": np.ones((1, 3)), "gallery_labels": ["a"]},
            "both integers",
        ),
        (np.ones((2, 3)), [0], {}, "one label for each of the 2"),
        (np.ones((2, 3)), [0.5, 1], {}, "whole numbers"),
        (np.ones((2, 3)), ["a", None], {}, "all strings"),
        (np.ones((2, 3)), [0, 1], {}, "no query has a match"),
        (np.ones((0, 3)), [], {}, "at least one"),
        (np.ones((1, 3)), [1], {}, "no query has a match"),
        (np.ones((2, 3)), [0, 0], {"ks": (0,)}, "positive"),
        (np.ones((2, 3)), [0, 0], {"metrics": ("f1",)}, "metrics must be among"),
        (np.ones((2, 3)), [0, 0], {"memory_budget": 1000}, "memory_budget is too small"),
    ],
)
def test_unusable_input_is_named(vectors: Any, labels: Any, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        retrieval_metrics(vectors, labels, **options)


def test_extreme_scales_keep_their_directions() -> None:
    vectors = np.array([[1e-30, 0], [1e30, 1e28], [0, 1e-30], [1e25, 1e30]])
    assert retrieval_metrics(vectors, [0, 0, 1, 1])["recall@1"] == 1
