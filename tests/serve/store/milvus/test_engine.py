"""What can go wrong around a Milvus is said in one line with its remedy."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serve.store.milvus.store import MilvusStore
from serve.store.types import Item, StoreError, StoreLocked, StoreUnreachable

KILLED = """
import os, sys
import numpy as np
from serve.store.milvus.store import MilvusStore
from serve.store.types import Item
store = MilvusStore.open(sys.argv[1], dim=4)
store.upsert([Item(n, np.eye(4)[n % 4], f"label {n}") for n in range(100)])
store.delete([7])
store.update(8, {"label": "edited"})
print("acknowledged", flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_second_engine_on_the_same_files_is_refused(tmp_path: Path) -> None:
    address = f"file:{tmp_path / 'lite'}"
    with MilvusStore.open(address, dim=4) as store:
        with pytest.raises(StoreLocked, match="in use"):
            MilvusStore.open(address, dim=4)
        store.upsert([Item(1, np.ones(4))])
    with MilvusStore.open(address) as store:
        assert store.count() == 1


def test_acknowledged_writes_survive_kill_9(tmp_path: Path) -> None:
    address = f"file:{tmp_path / 'lite'}"
    run = subprocess.run([sys.executable, "-c", KILLED, address], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert run.stdout == "acknowledged\n"
    with MilvusStore.open(address) as store:
        assert store.count() == 99
        assert [item and item.label for item in store.get([6, 7, 8])] == ["label 6", None, "edited"]
        # Numbers of writes go on where they were: the new item comes last.
        store.upsert([Item("new", np.ones(4))])
        assert [item.id for item in store.scan()][-1] == "new"


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreUnreachable, match="is Milvus running there"):
        MilvusStore.open("milvus://127.0.0.1:1", dim=4, timeout=0.5)


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(StoreError, match=r"kindred\[milvus\]"):
        MilvusStore.open(f"file:{tmp_path / 'lite'}", dim=4)
    assert not (tmp_path / "lite").exists()


def test_files_of_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    for place, words in ((tmp_path, "other files"), (tmp_path / "photo.jpg", "is a file")):
        with pytest.raises(StoreError, match=words):
            MilvusStore.open(f"file:{place}", dim=4)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_collection_of_another_program_is_left_alone(lite) -> None:
    lite.call("create_collection", "kindred_other", dimension=4)
    with pytest.raises(StoreError, match="not made by Kindred"):
        MilvusStore.on(lite, 4, collection="other")
    lite.call("drop_collection", "kindred_other")
