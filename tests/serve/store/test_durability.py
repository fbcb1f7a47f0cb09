"""Acknowledged means durable: under kill −9, a failing disk, a slow disk and a full one.

`make soak` runs the same scripts at full length.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("index", "seed"), [("Flat", 1), ("HNSW8", 2)])
def test_kill_9_loses_no_acknowledged_write(index: str, seed: int) -> None:
    options = ["--kills", "3", "--longest", "0.5", "--index", index, "--seed", str(seed)]
    assert "none lost" in run(ROOT / "tests/soak/store_kill.py", *options)


def test_writers_and_readers_at_once() -> None:
    options = ["--writers", "4", "--readers", "8", "--seconds", "3"]
    assert "no stale read" in run(ROOT / "tests/soak/store_load.py", *options)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and Linux's LD_PRELOAD")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("fsync_shim.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


FAILING = """
import sys
from pathlib import Path
import numpy as np
from serve.store.collection import FaissStore
from serve.store.types import Item
folder, flag = Path(sys.argv[1]), Path(sys.argv[2])
store = FaissStore.open(folder, dim=4)
store.upsert([Item("before", np.ones(4))])
flag.touch()
for write in (
    lambda: store.upsert([Item("failed", -np.ones(4))]),
    lambda: store.delete(["before"]),
    lambda: store.update("before", {"label": "x"}),
    store.flush,
):
    try:
        write()
    except OSError as error:
        print("refused:", error.errno)
    else:
        sys.exit("a write was acknowledged though the disk never had it")
    assert [hit.id for hit in store.search(np.ones(4)).hits[0]] == ["before"]
    assert store.get(["before"])[0].label is None
    assert not list(folder.rglob("vectors.f32")), "a segment counts though the disk never had it"
flag.unlink()
store.upsert([Item("after", np.ones(4))])
store.flush()
store.close()
with FaissStore.open(folder) as store:
    assert {"before", "after"} <= {item.id for item in store.scan()}, "an acknowledged write is gone"
    assert store.stats().memtable == 0
"""

SLOW = """
import sys, threading, time
from pathlib import Path
import numpy as np
from serve.store.collection import FaissStore
from serve.store.types import Item
folder, flag = Path(sys.argv[1]), Path(sys.argv[2])
store = FaissStore.open(folder, dim=4)
flag.touch()
threads = [
    threading.Thread(target=store.upsert, args=([Item(n, np.ones(4))],)) for n in range(8)
]
for thread in threads:
    thread.start()
time.sleep(0.3)
assert all(thread.is_alive() for thread in threads), "acknowledged before the disk had it"
assert store.search(np.ones(4)).hits == [[]], "searches saw what was not durable"
flag.unlink()
for thread in threads:
    thread.join()
assert {hit.id for hit in store.search(np.ones(4)).hits[0]} == set(range(8))
store.close()
"""


def test_a_failing_fsync_fails_the_write(shim: Path, tmp_path: Path) -> None:
    flag = tmp_path / "fail"
    out = run("-c", FAILING, tmp_path / "store", flag, LD_PRELOAD=str(shim), SHIM_FAIL=str(flag))
    assert out.count("refused: 5") == 4


def test_acknowledgement_waits_for_fsync(shim: Path, tmp_path: Path) -> None:
    flag = tmp_path / "hold"
    run("-c", SLOW, tmp_path / "store", flag, LD_PRELOAD=str(shim), SHIM_HOLD=str(flag))
