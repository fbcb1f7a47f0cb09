"""Folders, archives and tables that users bring."""

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from data.sources import FolderSource, GlyphSource, ListingSource, OmniglotSource, ZipSource, open_source
from models.errors import InputError


def test_folder_names_its_empty_classes(
    write_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    root = write_folder({"a": 1, "b": 1})
    (root / "void").mkdir()
    (root / ".git").mkdir()
    with caplog.at_level(logging.WARNING):
        assert FolderSource(root).table().class_names == ["a", "b"]
    assert "1 class folders hold no images: void" in caplog.text
    assert ".git" not in caplog.text


def test_links_are_followed_once(write_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    outside = write_folder({"x": 2}, "outside")
    root = write_folder({"a": 1})
    (root / "linked").symlink_to(outside / "x")
    (root / "loop").symlink_to(root)
    (root / "z").symlink_to(root / "a")
    assert FolderSource(root).table().class_names == ["a", "linked"]
    assert "2 links lead to folders that are listed already, and are left out: loop, z" in caplog.text


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    for spec in (tmp_path / "none", tmp_path / "none.zip", tmp_path / "none.csv"):
        with pytest.raises(InputError, match=r"none.*: no such"):
            open_source(spec).table()
    with pytest.raises(InputError, match="no images found"):
        open_source(tmp_path).table()


def test_zip_is_read_in_place(write_zip: Callable[..., Path]) -> None:
    path = write_zip({"a": 2, "b": 1}, wrapper="wrapped/")
    table = ZipSource(path).table()
    assert table.class_names == ["a", "b"]
    with zipfile.ZipFile(path) as archive:
        assert [table.read(row) for row in range(3)] == [archive.read(n) for n in archive.namelist()]
    assert list(path.parent.iterdir()) == [path]


def test_open_source_knows_what_is_meant(tmp_path: Path) -> None:
    folder = tmp_path / "images.zip"  # a folder that is called so
    folder.mkdir()
    assert isinstance(open_source(str(folder)), FolderSource)
    assert isinstance(open_source(tmp_path / "x.ZIP"), ZipSource)
    assert isinstance(open_source("x.parquet"), ListingSource)
    assert isinstance(open_source("x.tsv"), ListingSource)
    assert isinstance(open_source("omniglot"), OmniglotSource)
    glyphs = GlyphSource(size=20)
    assert open_source(glyphs) is glyphs


def test_csv_table(write_folder: Callable[..., Path], tmp_path: Path) -> None:
    write_folder({"a": 2, "b": 1}, "pictures")
    file = tmp_path / "list.csv"
    file.write_text(
        "path,label,split,is_query,is_gallery,camera\n"
        "pictures/b/000.png,0042,test,true,false,left\n"
        "pictures/a/000.png,0007,train,false,false,right\n"
        "pictures/a/001.png,0042,,false,true,left\n"
    )
    table = ListingSource(file).table()
    assert table.class_names == ["0007", "0042"]
    assert [table.name(row) for row in range(3)] == [
        "pictures/a/000.png",
        "pictures/b/000.png",
        "pictures/a/001.png",
    ]
    assert table.split is not None
    assert table.split.tolist() == ["train", "test", None]
    assert table.flags("is_query").tolist() == [False, True, False]
    assert table.metadata["camera"].to_pylist() == ["right", "left", "left"]
    assert table.read(2) == (tmp_path / "pictures" / "a" / "001.png").read_bytes()


def test_parquet_table_of_zip_members(write_zip: Callable[..., Path], tmp_path: Path) -> None:
    archive = write_zip({"a": 1, "b": 1})
    file = tmp_path / "list.parquet"
    pa.parquet.write_table(pa.table({"path": ["b/000.png", "a/000.png"], "label": [2, 1]}), file)
    table = ListingSource(file, archive).table()
    with zipfile.ZipFile(archive) as opened:
        assert table.read(0) == opened.read("a/000.png")
    pa.parquet.write_table(pa.table({"path": ["c/000.png"], "label": [2]}), file)
    with pytest.raises(InputError, match=r"lacks 1 listed images, 'c/000\.png' first"):
        ListingSource(file, archive).table()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,class\nx.png,a\n", "lacks the column 'label'"),
        ("path,label,split\nx.png,a,holdout\n", "split 'holdout' is none of"),
        ("path,label,is_query\nx.png,a,maybe\n", "column is_query must be true or false"),
        ("path,label\nx.png\n", "cannot be read as a table"),
        ("path,label\n", "empty"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        open_source(tmp_path / "list.csv").table()


def test_rows_without_label(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"path": ["x", None], "label": ["a", "b"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="1 rows lack a path or a label"):
        open_source(tmp_path / "x.parquet").table()
