"""Background work on the index outlives its failures, and says that it fails."""

import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.store import compaction
from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.manifest import SegmentFolder
from serve.store.types import Item, StoreDamaged

TUNING = Tuning(memtable_rows=20, build_threads=1)


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("database is locked"),
        sqlite3.ProgrammingError("odd"),
        StoreDamaged("x"),
        ValueError("y"),
        MemoryError(),
    ],
)
def test_it_goes_on_after_any_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    fails = True
    real = SegmentFolder.write

    def write(*given: Any, **options: Any) -> Any:
        if fails:
            raise error
        return real(*given, **options)

    monkeypatch.setattr(SegmentFolder, "write", write)
    monkeypatch.setattr(compaction, "_RETRY", 0.02)
    with caplog.at_level(logging.WARNING), FaissStore.open(tmp_path / "store", dim=4, tuning=TUNING) as store:
        assert store.stats().trouble is None
        for start in (0, 20, 40):
            store.upsert(Item(n, np.ones(4)) for n in range(start, start + 20))
        wait_until(lambda: sum("trying again" in record.message for record in caplog.records) >= 2)
        assert store.stats().trouble == (str(error) or "MemoryError")
        assert store.stats().segments == 0
        fails = False
        wait_until(lambda: store.stats().segments > 0 and store.stats().trouble is None)
        assert store.count() == 60


def test_its_pauses_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def write(*_: Any, **__: Any) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(SegmentFolder, "write", write)
    monkeypatch.setattr(compaction, "_LONGEST_RETRY", 5.0)
    with FaissStore.open(tmp_path / "store", dim=4, tuning=TUNING) as store:
        stop = store._compactor._stop
        real = stop.wait
        monkeypatch.setattr(stop, "wait", lambda pause: pauses.append(pause) or real(0.001))
        for start in (0, 20):
            store.upsert(Item(n, np.ones(4)) for n in range(start, start + 20))
        wait_until(lambda: len(pauses) >= 5)
    assert pauses[:5] == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_figures_count_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go while they are counted, as at the end of every merge."""
    real = Path.stat

    def stat(path: Path, **options: Any) -> Any:
        found = real(path, **options)
        if path.parent.name == "merged":
            for file in path.parent.iterdir():
                file.unlink()
        return found

    with FaissStore.open(tmp_path / "store", dim=4) as store:
        alone = store.stats().disk_bytes
        (store.place / "segments" / "merged").mkdir(parents=True)
        for name in ("keys.i64", "vectors.f32"):
            (store.place / "segments" / "merged" / name).write_bytes(bytes(100))
        monkeypatch.setattr(Path, "stat", stat)
        assert alone <= store.stats().disk_bytes <= alone + 100
