"""Counts and figures."""

from serve.store.types import Store


def test_labels_are_counted(filled: Store) -> None:
    assert filled.labels() == {f"label {n}": 25 for n in range(7)}
    filled.delete([1])
    assert list(filled.labels())[-1] == "label 1"
    assert len(filled.labels(limit=3)) == 3


def test_figures(filled: Store, kind: str) -> None:
    stats = filled.stats()
    assert (stats.items, stats.dim) == (200, 16)
    assert stats.lsn >= 200
    # A server does not say how much it keeps on its disks.
    assert stats.disk_bytes == 0 if kind.startswith("server") else stats.disk_bytes > 200 * 16 * 4
    filled.delete([1])
    assert filled.stats().lsn > stats.lsn
