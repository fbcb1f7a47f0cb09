"""One process owns a store; others may look at it."""

import multiprocessing
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from serve.store.collection import FaissStore
from serve.store.types import Item, ReadOnly, StoreError, StoreLocked

OPEN = """
import sys
from serve.store.collection import FaissStore
from serve.store.types import StoreLocked
try:
    FaissStore.open(sys.argv[1], dim=4).close()
except StoreLocked as error:
    print(error)
    sys.exit(3)
"""


def open_elsewhere(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", OPEN, str(folder)], capture_output=True, text=True, check=False
    )


def test_a_second_process_is_refused_until_the_first_closes(tmp_path: Path) -> None:
    store = FaissStore.open(tmp_path / "store", dim=4)
    second = open_elsewhere(tmp_path / "store")
    assert second.returncode == 3, second.stderr
    assert "in use" in second.stdout
    with pytest.raises(StoreLocked):
        FaissStore.open(tmp_path / "store", dim=4)
    store.close()
    store.close()
    assert open_elsewhere(tmp_path / "store").returncode == 0


def test_reading_beside_a_writer(tmp_path: Path) -> None:
    with FaissStore.open(tmp_path / "store", dim=4) as store:
        store.upsert([Item(n, np.eye(4)[n], f"label {n}", {"n": n}, b"image") for n in range(3)])
        with FaissStore.open(tmp_path / "store", read_only=True) as reader:
            assert reader.count() == 3
            assert reader.stats().items == 3
            assert reader.thumbnail(1) == b"image"
            assert reader.search(np.eye(4)[1], 1, where={"metadata.n": {"lt": 2}}).hits[0][0].id == 1
            store.delete([1])
            store.upsert([Item(2, np.eye(4)[3])])
            store.flush()
            assert reader.count() == 2
            assert [hit.id for hit in reader.search(np.eye(4)[1], 3).hits[0]] == [0]
            assert (
                reader.search(np.eye(4)[1], 3, where={"label": "label 0"}, group_by="label").hits[0][0].id
                == 0
            )
            for write in (
                lambda: reader.upsert([Item(9, np.ones(4))]),
                lambda: reader.delete([0]),
                lambda: reader.update(0, {"label": "x"}),
                reader.flush,
                reader.purge,
                lambda: reader.create_field_index("label"),
            ):
                with pytest.raises(ReadOnly):
                    write()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = FaissStore.open(tmp_path / "store", dim=4)
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.count()
    with pytest.raises(StoreError, match="closed"):
        store.upsert([Item(1, np.ones(4))])
    with pytest.raises(StoreError, match="closed"):
        store.search(np.ones(4), where={"id": 1})


def _write_after_fork(store: FaissStore, answers: Connection) -> None:
    for write in (
        lambda: store.upsert([Item("b", np.ones(4, np.float32))]),
        lambda: store.delete(["a"]),
        lambda: store.get(["a"]),
        store.flush,
    ):
        try:
            write()
        except StoreError as error:
            answers.send(str(error))
        else:
            answers.send("done")


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12 warns beside threads
def test_a_forked_child_is_told_to_open_the_store_itself(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    with FaissStore.open(tmp_path / "store", dim=4) as store:
        store.upsert([Item("a", np.ones(4, np.float32))])
        child = multiprocessing.get_context("fork").Process(target=_write_after_fork, args=(store, theirs))
        child.start()
        try:
            for _ in range(4):
                assert ours.poll(60), "the child hangs"
                assert "opened before this process was forked" in ours.recv()
        finally:
            child.kill()
            child.join()
        assert store.count() == 1
