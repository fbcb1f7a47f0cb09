"""A full disk refuses writes with `DiskFull`, keeps answering, and takes writes again once there is room."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serve.store.collection import FaissStore
from serve.store.store_folder import replace_file, write_synced
from serve.store.types import DiskFull, Item

SIZE = 12 * 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 12 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", place]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small file system here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path) -> Path:
    """Takes all the room there is."""
    hog = place / "hog"
    with pytest.raises(DiskFull):
        write_synced(hog, [bytes(4096)] * (2 * SIZE // 4096))
    assert not hog.exists()
    with hog.open("wb", buffering=0) as file:
        for block in (bytes(65536), bytes(4096)):
            try:
                while True:
                    file.write(block)
            except OSError:
                pass
    return hog


def test_a_real_full_disk(small_disk: Path) -> None:
    rng = np.random.default_rng(0)
    with FaissStore.open(small_disk / "store", dim=64) as store:
        store.upsert(Item(n, rng.standard_normal(64), "a", {}, b"t" * 100) for n in range(3000))
        store.flush()
        hog = fill(small_disk)
        more = (Item(n, rng.standard_normal(64), thumbnail=bytes(999)) for n in range(3000, 60_000))
        with pytest.raises(DiskFull, match="full"):
            store.upsert(more)
        with pytest.raises(DiskFull):
            store.flush()
        held = store.count()
        found = store.get([0, 2999], with_vectors=True)
        assert store.search(found[0].vector, 1).hits[0][0].id == 0
        hog.unlink()
        store.upsert([Item("after", found[0].vector * -1)])
        store.flush()
        assert store.count() == held + 1
    with FaissStore.open(small_disk / "store") as store:
        assert store.count() == held + 1
        assert store.search(-found[0].vector, 1).hits[0][0].id == "after"
        assert store.stats().memtable == 0


LIMITED = """
import resource, sys
import numpy as np
from serve.store.collection import FaissStore
from serve.store.types import DiskFull, Item
rng = np.random.default_rng(0)
items = [Item(n, rng.standard_normal(64)) for n in range(4000)]
store = FaissStore.open(sys.argv[1], dim=64)
store.upsert(items)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    store.flush()
except DiskFull as error:
    print(error)
else:
    sys.exit("the segment was taken for whole")
assert store.stats().segments == 0
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.flush()
assert store.stats().segments == 1
store.close()
"""


def test_a_flush_that_does_not_fit(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    assert "full" in done.stdout


def test_a_database_at_its_limit(tmp_path: Path) -> None:
    """Where nothing may be mounted, SQLite's own page limit gives the same error code."""
    with FaissStore.open(tmp_path / "store", dim=64) as store:
        store.upsert([Item("first", np.ones(64))])
        writer = store._database._writer
        writer.execute("PRAGMA max_page_count = 40")
        with pytest.raises(DiskFull):
            store.upsert(Item(n, np.ones(64)) for n in range(5000))
        assert store.count() == 1
        writer.execute("PRAGMA max_page_count = 1000000")
        store.upsert([Item("second", np.ones(64))])
        assert store.count() == 2


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    replace_file(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFull):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]
