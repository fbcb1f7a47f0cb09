"""Approximate indexes against exact search, and the choice among them."""

import json
from pathlib import Path

import faiss
import numpy as np
import pytest

from app.commands.index import tune
from app.evaluation.index_recall import build, exact_neighbours, measure_search, measure_store
from app.tune import candidates, tune_vectors
from models.errors import InputError
from serve.store.collection import FaissStore
from serve.store.types import Item


def unit_vectors(size: int = 3000, dim: int = 16) -> np.ndarray:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, dim))[rng.integers(0, 40, size)] + 0.4 * rng.normal(size=(size, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_flat_finds_all_and_a_blind_index_nothing() -> None:
    vectors = unit_vectors()
    truth = exact_neighbours(vectors, 100, seed=0)
    flat, seconds = build("Flat", vectors)
    about = {"index": "x", "parameters": "", "bytes": 0, "build_seconds": seconds}
    found = measure_search(lambda q, k: flat.search(q, k)[1], truth, **about)
    assert (found.recall_at_1, found.recall_at_10) == (1, 1)
    blind = measure_search(lambda q, k: np.full((len(q), k), -1), truth, **about)
    assert (blind.recall_at_1, blind.recall_at_10) == (0, 0)
    half = measure_search(lambda q, k: np.where(np.arange(k) < 6, flat.search(q, k)[1], -1), truth, **about)
    assert half.recall_at_10 == pytest.approx(0.5)


def test_duplicates_are_as_good_as_each_other() -> None:
    vectors = np.repeat(unit_vectors(40), 30, axis=0)
    truth = exact_neighbours(vectors, 50, seed=0)
    flat, _ = build("Flat", vectors)
    found = measure_search(
        lambda q, k: flat.search(q, k)[1][:, ::-1],
        truth,
        index="x",
        parameters="",
        bytes=0,
        build_seconds=0.0,
    )
    assert found.recall_at_10 == 1


def test_settings_of_faiss_are_put_back() -> None:
    threads, blas = faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold
    exact = exact_neighbours(unit_vectors(200), 20, seed=0)
    measure_search(
        lambda q, k: np.full((len(q), k), -1), exact, index="", parameters="", bytes=0, build_seconds=0.0
    )
    assert (faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold) == (threads, blas)


def test_the_choice_meets_both_limits() -> None:
    vectors = unit_vectors()
    measured, chosen = tune_vectors(vectors, recall=0.95, memory=10**9, queries=100)
    assert chosen is not None
    assert chosen.recall_at_10 >= 0.95
    assert {entry.index.split(",")[0] for entry in measured} >= {"Flat", "HNSW32", "SQ8"}
    small = vectors.size * 2  # less than half of the vectors themselves
    _, chosen = tune_vectors(vectors, recall=0.5, memory=small, queries=100)
    assert chosen is not None
    assert chosen.bytes <= small
    assert "SQ8" in chosen.index
    assert tune_vectors(vectors, recall=0.5, memory=1000, queries=100)[1] is None


def test_candidates_can_be_trained() -> None:
    assert [candidate.factory for candidate in candidates(100, 8)] == ["Flat", "SQ8", "HNSW32"]
    large = [candidate.factory for candidate in candidates(1_000_000, 128)]
    assert "IVF4096,Flat" in large
    assert "IVF4096,PQ32x4fs,RFlat" in large


def test_command_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "vectors.npy", unit_vectors(600))
    tune(embeddings=tmp_path / "vectors.npy", queries=50, out=tmp_path / "tuned.json")
    assert "choose --index-type" in capsys.readouterr().out
    tuned = json.loads((tmp_path / "tuned.json").read_text())
    assert tuned["chosen"] in tuned["measured"]
    assert tuned["chosen"]["recall@10"] >= 0.99
    flat = next(entry for entry in tuned["measured"] if entry["index"] == "Flat")
    assert (flat["recall@1"], flat["recall@10"]) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either --embeddings"),
        ({"recall": 1.5}, "between 0 and 1"),
        ({"memory": "1KB"}, "no index reaches"),
    ],
)
def test_unusable_arguments_are_named(arguments: dict, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", unit_vectors(200))
    given = {"embeddings": tmp_path / "vectors.npy"} if arguments else {}
    with pytest.raises(InputError, match=message):
        tune(**given, **arguments)


def test_unknown_factories_are_refused() -> None:
    with pytest.raises(InputError, match="cannot build"):
        build("NoSuchIndex", unit_vectors(100))


@pytest.fixture
def filled_store(tmp_path: Path) -> Path:
    with FaissStore.open(tmp_path / "store", dim=16) as store:
        store.upsert(Item(id=f"item-{row}", vector=vector) for row, vector in enumerate(unit_vectors(600)))
        store.delete(["item-3"])
        store.flush()
    return tmp_path / "store"


def test_an_exact_store_finds_all(filled_store: Path) -> None:
    measured = measure_store(filled_store, seed=0)
    assert (measured["recall@1"], measured["recall@10"]) == (1, 1)
    assert measured["factory"] == "Flat"
    assert measured["bytes"] > 600 * 16 * 4
    assert measured["single_qps"] > 0


def test_an_empty_store_is_an_error(tmp_path: Path) -> None:
    FaissStore.open(tmp_path / "store", dim=16).close()
    with pytest.raises(InputError, match="empty"):
        measure_store(tmp_path / "store", seed=0)


def test_tuning_on_a_store(filled_store: Path, tmp_path: Path) -> None:
    tune(store=filled_store, recall=0.9, memory="10MB", queries=50, out=tmp_path / "tuned.json")
    tuned = json.loads((tmp_path / "tuned.json").read_text())
    assert tuned["chosen"]["recall@10"] >= 0.9
    assert {entry["index"] for entry in tuned["measured"]} >= {"Flat"}
