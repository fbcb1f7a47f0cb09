"""What else lies in people's folders and archives."""

import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data.sources import FolderSource, ListingSource, ZipSource
from models.errors import InputError
from models.preprocess import Preprocess


def packed(path: Path, files: list[tuple[str, bytes]]) -> ZipSource:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # a name that comes twice
        for name, content in files:
            archive.writestr(name, content)
    return ZipSource(path)


def test_an_archive_made_on_windows(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    files = [("set\\train\\", b""), ("set\\train\\a\\1.png", encode(1)), ("set\\test\\b\\2.png", encode(2))]
    table = packed(tmp_path / "x.zip", files).table()
    assert table.class_names == ["a", "b"]
    assert table.names.to_pylist() == ["set/train/a/1.png", "set/test/b/2.png"]
    assert [table.read(row) for row in range(2)] == [encode(1), encode(2)]


def test_of_a_name_that_comes_twice_the_last_file_counts(
    tmp_path: Path, encode: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    files = [
        ("a/1.png", encode(1)),
        ("b/2.png", encode(2)),
        ("./a//1.png", encode(3)),
        ("a/1.png", encode(4)),
    ]
    source = packed(tmp_path / "x.zip", files)
    table = source.table()
    assert [table.read(row) for row in range(2)] == [encode(4), encode(2)]
    assert "1 names come more than once; the last file of each counts: a/1.png" in caplog.text
    (tmp_path / "list.csv").write_text("path,label\na/1.png,x\n")
    assert ListingSource(tmp_path / "list.csv", tmp_path / "x.zip").table().read(0) == encode(4)


def test_a_table_may_list_any_file_of_an_archive(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    packed(tmp_path / "x.zip", [(".NET/1", encode(1)), ("a/2.image", encode(2))])
    (tmp_path / "list.csv").write_text("path,label\n.NET/1,x\na/2.image,y\n")
    table = ListingSource(tmp_path / "list.csv", tmp_path / "x.zip").table()
    assert [table.read(row) for row in range(2)] == [encode(1), encode(2)]


def test_archives_that_zipfile_stumbles_over_are_refused(write_zip: Callable[..., Path]) -> None:
    path = write_zip({"ü": 1})
    content = path.read_bytes()
    path.write_bytes(content.replace("ü".encode(), b"\xff\xff"))
    with pytest.raises(InputError, match="a name in it is not UTF-8"):
        ZipSource(path).table()
    changed = bytearray(content)
    changed[content.rindex(b"PK\x01\x02") + 6] = 99  # a version of the format that is to come
    path.write_bytes(changed)
    with pytest.raises(InputError, match="cannot be read as a zip archive"):
        ZipSource(path).table()


def test_names_that_are_not_utf8_are_skipped_and_named(
    write_folder: Callable[..., Path], encode: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    root = write_folder({"a": 1, "b": 1})
    for name in (b"a/caf\xe9.png", b"Stra\xdfe/1.png"):
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(1))
    assert FolderSource(root).table().names.to_pylist() == ["a/000.png", "b/000.png"]
    assert "2 files or folders are left out, whose names are not UTF-8" in caplog.text
    assert r"Stra\xdfe, a/caf\xe9.png" in caplog.text


@pytest.mark.parametrize("kind", ["folder", "archive", "table"])
def test_a_source_whose_path_is_not_utf8_is_refused(
    kind: str, write_folder: Callable[..., Path], write_zip: Callable[..., Path], tmp_path: Path
) -> None:
    made = (
        {"folder": write_folder, "archive": write_zip}[kind]({"a": 1})
        if kind != "table"
        else tmp_path / "x.csv"
    )
    if kind == "table":
        made.write_text("path,label\na.png,a\n")
    path = made.rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    source = {"folder": FolderSource, "archive": ZipSource, "table": ListingSource}[kind](path)
    with pytest.raises(InputError, match=r"caf\\xe9: the path is not UTF-8; rename"):
        source.table()


def test_long_names_of_sources(write_folder: Callable[..., Path]) -> None:
    assert len(FolderSource(write_folder({"a": 1, "b": 1}, "ü" * 120)).table()) == 2


SUFFIXES = {".jfif": "JPEG", ".jpe": "JPEG", ".JPG": "JPEG", ".dib": "BMP", ".pnm": "PPM", ".apng": "PNG"}


def test_every_ending_of_a_known_format_is_read(
    tmp_path: Path, encode: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    files = {f"a/x{suffix}": encode(1, kind=kind) for suffix, kind in SUFFIXES.items()}
    for name, content in files.items():
        (tmp_path / "set" / name).write_bytes(content)
    for source in (FolderSource(tmp_path / "set"), packed(tmp_path / "x.zip", list(files.items()))):
        table = source.table()
        assert sorted(table.names.to_pylist()) == sorted(files)
        for row in range(len(table)):
            Preprocess(16).open(table.read(row))
    assert not caplog.text


def test_what_is_left_out_is_named(
    tmp_path: Path, encode: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    read = ["a/1.png", "b/1.png"]
    hidden = [".NET/1.png", ".NET/deep/2.png", "a/.3.png"]
    unread = ["a/1.heic", "a/2.HEIC", "b/1.cr2", "b/no_ending"]
    silent = ["__MACOSX/a/._1.png", "a/._1.png", ".git/1.png", "a/.ipynb_checkpoints/1.png", ".DS_Store"]
    silent += ["README", "a/notes.txt", "Thumbs.db", ".other/x.heic"]
    for name in (*read, *hidden, *unread, *silent):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(1))
    files = [(name, encode(1)) for name in (*read, *hidden, *unread, *silent)]
    for source in (FolderSource(tmp_path / "set"), packed(tmp_path / "x.zip", files)):
        caplog.clear()
        assert source.table().names.to_pylist() == read
        assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
            "2 hidden files or folders with images are left out; rename them without the dot: .NET, a/.3.png",
            "4 files are not read; convert images to JPEG or PNG: 2 .heic, 1 .cr2, 1 without ending",
        ]


def test_a_folder_of_unread_files_only_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.heic").write_bytes(b"")
    with pytest.raises(InputError, match="no images found"):
        FolderSource(tmp_path).table()
    assert "1 files are not read; convert images to JPEG or PNG: 1 .heic" in caplog.text
