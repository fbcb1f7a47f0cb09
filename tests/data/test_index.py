import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data.sources import FolderSource, ZipSource


def count_builds(monkeypatch: pytest.MonkeyPatch, kind: type, method: str = "_build") -> list[int]:
    builds: list[int] = []
    build = getattr(kind, method)

    def counted(self: object) -> object:
        builds.append(1)
        return build(self)

    monkeypatch.setattr(kind, method, counted)
    return builds


def test_folders_are_listed_once_until_something_changes(
    write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, encode: Callable[..., bytes]
) -> None:
    root = write_folder({"a": 2, "b": 2})
    builds = count_builds(monkeypatch, FolderSource)
    assert len(FolderSource(root).table()) == 4
    assert len(FolderSource(root).table()) == 4
    assert len(builds) == 1
    (root / "b" / "new.png").write_bytes(encode(7))
    os.utime(root / "b", ns=(1, 1))  # coarse clocks: two changes within a tick
    assert len(FolderSource(root).table()) == 5
    (root / "split.csv").write_text("class,split\na,train\nb,test\n")
    split = FolderSource(root).table().split
    assert split is not None
    assert split.tolist() == ["train"] * 2 + ["test"] * 3
    assert len(builds) == 3


def test_a_rewritten_archive_is_listed_anew(write_zip: Callable[..., Path]) -> None:
    assert len(ZipSource(write_zip({"a": 2, "b": 2})).table()) == 4
    assert len(ZipSource(write_zip({"a": 3, "b": 2})).table()) == 5


def test_a_damaged_index_is_built_anew(write_folder: Callable[..., Path], cache_folder: Path) -> None:
    root = write_folder({"a": 2, "b": 2})
    FolderSource(root).table()
    (index,) = (cache_folder / "index").iterdir()
    index.write_bytes(b"damaged")
    assert len(FolderSource(root).table()) == 4
