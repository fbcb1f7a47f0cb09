"""Scans on a device against the CPU's; a machine without a GPU stands in for one with torch's CPU device."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from serve.store.ann import flat
from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.types import Item

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def unit(rng: np.random.Generator, rows: int, dim: int = 16) -> np.ndarray:
    vectors = rng.standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [1, 10_000, 2**28])
@pytest.mark.parametrize("queries", [1, 7, 40])
def test_the_same_neighbours_as_on_the_cpu(monkeypatch: pytest.MonkeyPatch, block: int, queries: int) -> None:
    monkeypatch.setattr(flat, "_PRODUCT_BYTES", block)
    rng = np.random.default_rng(0)
    vectors, asked = unit(rng, 500), unit(rng, queries)
    similarities, rows = flat.DeviceScan(vectors, DEVICE).scan(asked, 9)
    expected, expected_rows = flat.scan(asked, vectors, 9)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(similarities, expected, atol=1e-6)


def test_no_copy_without_a_gpu_or_for_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit(np.random.default_rng(0), flat.LEAST_ROWS, 2)
    if not torch.cuda.is_available():
        assert flat.copy_to_device(vectors) is None
    monkeypatch.setattr(flat, "_has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert flat.copy_to_device(vectors[:-1]) is None


def test_a_copy_only_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = unit(np.random.default_rng(0), flat.LEAST_ROWS, 2)
    monkeypatch.setattr(flat, "_has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (vectors.nbytes, vectors.nbytes))
    assert flat.copy_to_device(vectors) is None
    assert "does not fit the GPU" in caplog.text


def test_a_named_device_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    monkeypatch.setattr(flat, "LEAST_ROWS", 1)
    monkeypatch.setattr(flat, "_has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (2**30, 2**30))
    monkeypatch.setattr(flat, "DeviceScan", lambda _, place: copied.append(str(place)))
    vectors = unit(np.random.default_rng(0), 30)
    with FaissStore.open(tmp_path / "store", dim=16, tuning=Tuning(device="cpu")) as store:
        store.upsert(Item(id=row, vector=vector) for row, vector in enumerate(vectors))
        store.flush()
    assert copied == []
    for name in ("auto", "cuda:1"):
        FaissStore.open(tmp_path / "store", tuning=Tuning(device=name)).close()
    assert copied == ["cuda", "cuda:1"]


def test_a_store_on_the_cpu_imports_no_torch(tmp_path: Path) -> None:
    """On a machine without NVIDIA's driver none is needed for device="auto" either."""
    code = f"""
import importlib, pkgutil, sys
import numpy as np
import serve.store
from serve.store.ann import flat
from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.types import Item

for module in pkgutil.walk_packages(serve.store.__path__, "serve.store."):
    importlib.import_module(module.name)
flat.LEAST_ROWS = 10
for name in ("cpu", "auto"):
    flat._has_driver = lambda: False
    with FaissStore.open({str(tmp_path)!r} + "/" + name, dim=4, tuning=Tuning(device=name)) as store:
        store.upsert(Item(row, np.arange(1, 5) + row) for row in range(20))
        store.flush()
        assert store.search(np.ones(4), 3).hits[0]
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_store_searches_its_segments_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "serve.store.manifest.copy_to_device", lambda vectors, _: flat.DeviceScan(vectors, DEVICE)
    )
    scans = []
    scan = flat.DeviceScan.scan
    monkeypatch.setattr(
        flat.DeviceScan, "scan", lambda self, queries, k: scans.append(k) or scan(self, queries, k)
    )
    vectors = unit(np.random.default_rng(0), 300)
    with FaissStore.open(tmp_path / "store", dim=16) as store:
        store.upsert(Item(id=row, vector=vector, label=str(row % 3)) for row, vector in enumerate(vectors))
        store.flush()
        store.delete([5, 6])
        for where in (None, {"label": "0"}):
            found = store.search(vectors[:20], k=4, where=where)
            for query, hits in zip(vectors, found.hits, strict=False):
                alive = [row for row in range(300) if row not in (5, 6) and (where is None or row % 3 == 0)]
                best = sorted(alive, key=lambda row: -float(query @ vectors[row]))[:4]
                assert [hit.id for hit in hits] == best
    assert scans
