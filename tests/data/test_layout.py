import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from data.layout import classes_of, read_lines
from data.sources import FolderSource, ZipSource
from models.errors import InputError


@pytest.mark.parametrize(
    ("folders", "classes", "parts"),
    [
        (["a", "b"], ["a", "b"], [None, None]),
        (["set/a", "set/b"], ["a", "b"], [None, None]),
        (["x/y/a", "x/y/b/c"], ["a", "b/c"], [None, None]),
        (["a"], ["a"], [None]),
        (["x/a"], ["a"], [None]),
        (["a", "a/b"], ["a", "a/b"], [None, None]),
        (["train/a", "test/b"], ["a", "b"], ["train", "test"]),
        (["set/Training/a", "set/valid/b"], ["a", "b"], ["train", "val"]),
        (["train/a", "other/b"], ["train/a", "other/b"], [None, None]),
        (["train", "test"], ["train", "test"], [None, None]),
        ([], [], []),
    ],
)
def test_folder_names_mean_classes_and_parts(
    folders: list[str], classes: list[str], parts: list[str | None]
) -> None:
    assert classes_of(folders) == (classes, parts)


def test_part_folders_become_the_split(write_folder: Callable[..., Path]) -> None:
    table = FolderSource(write_folder({"train/a": 1, "train/b": 1, "val/c": 1, "test/d": 2})).table()
    assert table.class_names == ["a", "b", "c", "d"]
    assert table.split is not None
    assert table.split.tolist() == ["train", "train", "val", "test", "test"]


def test_split_csv_wins_and_brings_class_columns(write_zip: Callable[..., Path]) -> None:
    path = write_zip({"train/a": 1, "val/a": 1, "train/b": 1}, "sub/images.zip")
    (path.parent / "split.csv").write_text(
        "class,split,images,coarse\nb,train,9,x\na,test,9,y\nc,train,0,z\n"
    )
    table = ZipSource(path).table()
    assert table.class_names == ["a", "b"]
    assert table.split is not None
    assert table.split.tolist() == ["test", "test", "train"]
    assert {name: column.to_pylist() for name, column in table.metadata.items()} == {
        "part": ["train", "val", "train"],
        "coarse": ["y", "y", "x"],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("class,part\na,train\n", "needs the columns class and split"),
        ("class,split\na,train\na,test\nb,test\n", "names a class twice"),
        ("class,split\na,train\nb,dev\n", "split 'dev' is none of"),
        ("class,split\na,train\n", "lacks 1 classes, 'b' first"),
        ("", "cannot be read as CSV"),
    ],
)
def test_a_split_csv_that_does_not_fit(write_folder: Callable[..., Path], content: str, message: str) -> None:
    root = write_folder({"a": 1, "b": 1})
    (root / "split.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        FolderSource(root).table()


def test_images_outside_of_classes(
    write_folder: Callable[..., Path], encode: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    root = write_folder({"a": 1, "b": 1})
    (root / "stray.png").write_bytes(encode(1))
    with caplog.at_level(logging.WARNING):
        assert len(FolderSource(root).table()) == 2
    assert "1 images outside of class folders" in caplog.text
    only = root / "a"
    with pytest.raises(InputError, match="images lie outside of class folders"):
        FolderSource(only).table()


def test_lists_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    with pytest.raises(InputError, match="cannot be read"):
        read_lines(file, 2)
    file.write_text("head\n1 a\n\n2 b c\n")
    with pytest.raises(InputError, match="line 3 has 3 fields instead of 2"):
        read_lines(file, 2, skip=1)
