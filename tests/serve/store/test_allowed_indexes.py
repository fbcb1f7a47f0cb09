"""An index that FAISS does not survive is refused in one line, before anything is written."""

import subprocess
import sys
from pathlib import Path

import pytest

from serve.store.ann import approximate
from serve.store.catalogue import Catalogue
from serve.store.collection import FaissStore
from serve.store.types import StoreError

DEADLY = (
    "HNSW0",
    "HNSW1",
    "HNSW2147483647",
    "HNSW99999999999999999999",
    "IVF0,Flat",
    "IVF4_HNSW0,Flat",
    "IVF99999999,Flat",
    "IVF4,PQ17",
    "PCA17,IVF4,Flat",
)
UNKNOWN = ("NSG16", "IDMap,Flat", "Sponge", "HNSW\u0663", "HNSW8\n", "IVF4", "Flat,Flat", "HNSW8," * 5000)
# Known, in range, and yet FAISS cannot build it: the pieces of a code must be equally long.
BUILT_BY_NOBODY = ("IVF4,PQ5",)


@pytest.mark.parametrize("index", [*DEADLY, *UNKNOWN, *BUILT_BY_NOBODY])
def test_an_index_that_does_not_work_is_refused(tmp_path: Path, index: str) -> None:
    with Catalogue(tmp_path / "store") as catalogue:
        with pytest.raises(StoreError) as caught:
            catalogue.create("a", 16, index=index)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200
        assert catalogue.collections() == []
        assert list((tmp_path / "store" / "collections").iterdir()) == []
        catalogue.create("a", 16)
        assert catalogue.collections() == ["a"]


def test_an_old_collection_is_not_given_such_an_index(tmp_path: Path) -> None:
    with Catalogue(tmp_path / "store") as catalogue:
        catalogue.create("a", 16, index="HNSW8")
    with pytest.raises(StoreError):
        FaissStore.open(tmp_path / "store", index="HNSW0", collection="a")
    with FaissStore.open(tmp_path / "store", collection="a") as store:
        assert store.index == "HNSW8"


@pytest.mark.parametrize(
    "index",
    ["HNSW2", "HNSW256", "IVF65536,SQ8", "IVF256_HNSW32,SQfp16", "PCA8,HNSW16", "SQ8", "RR8,IVF4,SQ6"],
)
def test_an_index_that_works_is_taken(tmp_path: Path, index: str) -> None:
    with Catalogue(tmp_path / "store") as catalogue:
        assert catalogue.create("a", 16, index=index).index == index


@pytest.mark.parametrize("index", ["HNSW2147483647", "IVF4_HNSW0,Flat", "NSG0"])
def test_a_trial_that_dies_or_never_ends_is_a_refusal(monkeypatch: pytest.MonkeyPatch, index: str) -> None:
    monkeypatch.setattr(approximate, "_TRIAL_SECONDS", 4.0)
    with pytest.raises(StoreError, match="FAISS makes no index"):
        approximate._try_out(index, 16)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_a_trial_takes_little_memory() -> None:
    code = (
        "import numpy; from serve.store.ann.approximate import _limit_memory; "
        "_limit_memory(); numpy.ones(6 * 2**30, 'u1')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MemoryError" in done.stderr
