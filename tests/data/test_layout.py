import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from data.layout import classes_of, read_lines
from data.sources import FolderSource, ZipSource
from data.splits import split_classes
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
        ([], [], []),
    ],
)
def test_folder_names_mean_classes_and_parts(
    folders: list[str], classes: list[str], parts: list[str | None]
) -> None:
    assert classes_of(folders) == (classes, parts)


@pytest.mark.parametrize(
    ("folders", "classes", "parts"),
    [
        (["", "train/a", "test/b"], ["", "a", "b"], [None, "train", "test"]),
        (["train/a", "test/b", "unlabeled"], ["a", "b", ""], ["train", "test", None]),
        (["docs/figures", "data/Train/a", "data/TEST/b/c"], ["", "a", "b/c"], [None, "train", "test"]),
        (["train/a", "train", "test/b"], ["a", "", "b"], ["train", None, "test"]),
        (["train/a", "test"], ["a", ""], ["train", None]),
        (["test/train/a", "test/test/b"], ["a", "b"], ["train", "test"]),
        (["train/a/train", "train/a/test", "test/b"], ["a/train", "a/test", "b"], ["train", "train", "test"]),
        (["", "set/a", "set/b"], ["", "a", "b"], [None] * 3),
        (["", "train/a", "train/b"], ["", "a", "b"], [None] * 3),
        (["car", "bus", "train"], ["car", "bus", "train"], [None] * 3),
        (["a/train", "b/train"], ["a/train", "b/train"], [None] * 2),
        (["york/train/a", "bath/train/b"], ["york/train/a", "bath/train/b"], [None] * 2),
        (["test"], ["test"], [None]),
        (["train/a", "dev/b"], ["a", "b"], ["train", "val"]),
        (["training_set/a", "test_set/b", "single_prediction"], ["a", "b", ""], ["train", "test", None]),
        (["train_images/a", "test_images"], ["a", ""], ["train", None]),
        (["bounding_box_train/a", "bounding_box_test/b", "query/b"], ["a", "b", ""], ["train", "test", None]),
        (["1_train /a", " 2-TEST/b"], ["a", "b"], ["train", "test"]),
        (["x/train2017/a", "x/val2017/b"], ["a", "b"], ["train", "val"]),
        (["seg_train/seg_train/a", "seg_test/seg_test/b"], ["a", "b"], ["train", "test"]),
        (["train/train/a", "test/test/b/c"], ["a", "b/c"], ["train", "test"]),
        (["train/train", "train/car", "test/bus"], ["train", "car", "bus"], ["train", "train", "test"]),
        (
            ["train/a", "test/b", "train_masks/a", "test_masks/b"],
            ["a", "b", "", ""],
            ["train", "test", None, None],
        ),
        (["train_station", "test_tube"], ["train_station", "test_tube"], [None] * 2),
        (["train_station/in", "bus_station/in"], ["train_station/in", "bus_station/in"], [None] * 2),
        (["car", "crash_test"], ["car", "crash_test"], [None] * 2),
    ],
)
def test_a_split_is_recognised_beside_anything_else(
    folders: list[str], classes: list[str], parts: list[str | None]
) -> None:
    assert classes_of(folders) == (classes, parts)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train", "test"], "put class folders into train and test"),
        (["car", "train", "test"], "put class folders into train and test"),
        (["a/train", "a/test", "b/train", "b/test"], "lie in 2 places, among them a and b; put train"),
        (["train/a", "test/b", "more/train/c", "more/test/d"], "among them the top and more"),
        (["train/a", "holdout/b"], "train looks like a part of a split, but beside it there are holdout/b"),
        (["car", "bus", "test/a"], "test looks like a part of a split, but beside it there are bus, car"),
        (["car", "bus", "test"], "test looks like a part of a split, but beside it there are bus, car"),
        (["a/train", "b/test"], "a/train looks like a part of a split, but beside it there are b/test"),
        (["train/a/test", "train/b"], "a/test looks like a part of a split"),
        (["x/train/a", "y/test/b"], "x/train looks like a part of a split"),
        (["train_set", "test_set"], "put class folders into train and test"),
        (
            ["photos/a", "test_set/b"],
            "test_set looks like a part of a split, but beside it there are photos/a",
        ),
        (["train_a/c", "test_a/d", "train_b/e", "test_b/f"], "among them the top a and the top b"),
    ],
)
def test_what_may_be_a_split_and_is_not_clear_is_refused(folders: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        classes_of(folders)
    classes, parts = classes_of(folders, decided=True)
    assert all(classes)
    assert parts == [None] * len(folders)


def test_with_a_split_csv_names_with_other_words_are_classes() -> None:
    folders = ["train_set/a", "test_set/a"]
    assert classes_of(folders, decided=True) == (folders, [None] * 2)


@pytest.mark.parametrize("above", ["", "test/"])
def test_query_and_gallery_folders_are_refused(above: str) -> None:
    folders = ["train/x", *(f"{above}{role}/{name}" for role in ("query", "Gallery") for name in "ab")]
    with pytest.raises(
        InputError, match=r"the class a is in the folders query and gallery; list .* is_query"
    ):
        classes_of(folders if above else folders[1:])
    assert classes_of(["query", "gallery", "menu"])[0] == ["query", "gallery", "menu"]  # icons of buttons


def test_a_class_spelled_in_two_ways_is_in_both_parts(write_folder: Callable[..., Path]) -> None:
    root = write_folder({"train/caf\u00e9": 2, "train/b": 2, "test/cafe\u0301": 2, "test/c": 2})
    with pytest.raises(InputError, match="is in both train and test"):
        split_classes(FolderSource(root).table())


def test_strays_beside_a_split_are_named(
    write_folder: Callable[..., Path],
    write_zip: Callable[..., Path],
    encode: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    classes = {"train/a": 1, "train/b": 2, "test/c": 2, "unlabeled": 3, "docs/figures": 1}
    root = write_folder(classes)
    (root / "cover.png").write_bytes(encode(9))
    for source, strays in ((FolderSource(root), 5), (ZipSource(write_zip(classes, wrapper="set/")), 4)):
        caplog.clear()
        table = source.table()
        assert table.class_names == ["a", "b", "c"]
        assert table.split is not None
        assert table.split.tolist() == ["train"] * 3 + ["test"] * 2
        assert f"{strays} images outside of class folders are left out" in caplog.text
        assert "unlabeled" in caplog.text
        assert "docs/figures" in caplog.text


def test_a_refused_layout_names_the_folder_and_a_split_csv_decides(write_folder: Callable[..., Path]) -> None:
    root = write_folder({"a/train": 1, "a/test": 1, "b/train": 1, "b/test": 1})
    with pytest.raises(InputError, match=r"images: train and test folders lie in 2 places, .*split\.csv"):
        FolderSource(root).table()
    rows = "".join(f"{name}/train,train\n{name}/test,test\n" for name in "ab")
    (root / "split.csv").write_text(f"class,split\n{rows}")
    split = FolderSource(root).table().split
    assert split is not None
    assert split.tolist() == ["test", "train", "test", "train"]


@pytest.mark.parametrize(
    "names", [["000", "001", "007", "010"], ["1.10", "1.1"], ["40063811333931234567", "1"], ["Null", "NA"]]
)
def test_class_names_in_a_split_csv_are_texts(write_folder: Callable[..., Path], names: list[str]) -> None:
    root = write_folder(dict.fromkeys(names, 1))
    rows = "".join(f"{name},train\n" for name in names)
    (root / "split.csv").write_text(f"class,split\n{rows}")
    assert FolderSource(root).table().class_names == sorted(names)


@pytest.mark.parametrize(
    ("content", "expected", "message"),
    [
        ("class;split\na;Training\nb; TEST\n", ["train", "test"], ""),
        ("sep=|\nClass|Split\na|train\nb|validation\n", ["train", "val"], ""),
        ("class,split\na,\nb,test\n", ["train", "test"], "1 classes without a split are for training"),
        ("class,split\na,train\nb,\n", ["train", None], "1 classes without a split are not used"),
    ],
)
def test_a_split_csv_of_any_make(
    write_folder: Callable[..., Path],
    content: str,
    expected: list[str | None],
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = write_folder({"a": 1, "b": 1})
    (root / "split.csv").write_text(content, encoding="utf-16")
    with caplog.at_level(logging.INFO):
        split = FolderSource(root).table().split
    assert split is not None
    assert split.tolist() == expected
    assert message in caplog.text


def test_any_name_of_a_column_is_metadata(write_folder: Callable[..., Path]) -> None:
    names = ["name", "root", "label", "offset", "size", "crc", "part", "metadata/x", "is_query", "x", "x", ""]
    root = write_folder({"a": 2, "b": 1})
    (root / "split.csv").write_text(
        f"class,split,{','.join(names)}\na,train{',p' * len(names)}\nb,test{',q' * len(names)}\n"
    )
    table = FolderSource(root).table()
    assert list(table.metadata) == [*names[:-2], "x.1", "Unnamed: 13"]
    assert all(column.to_pylist() == ["p", "p", "q"] for column in table.metadata.values())
    assert [table.name(row) for row in range(3)] == ["a/000.png", "a/001.png", "b/000.png"]
    assert "is_query" not in table.rows.column_names


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
        "images": [9, 9, 9],
        "coarse": ["y", "y", "x"],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("class,part\na,train\n", "needs the columns class and split"),
        ("class,split\na,train\na,test\nb,test\n", "names a class twice"),
        ("class,split\na,train\nb,holdout\n", "split 'holdout' is none of"),
        ("class,split\na,train\n", "lacks 1 classes, 'b' first"),
        ("", "lacks the column 'class'"),
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
