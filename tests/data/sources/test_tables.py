"""Tables as people write them: any column names, separators, encodings, spellings."""

import datetime
import decimal
import logging
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from app.evaluation.pairs import read_pairs
from data.csv_file import read_csv
from data.sources import FolderSource, IdentitySource, ListingSource
from data.table import ImageTable
from models.errors import InputError

# What the table itself, Arrow or Python calls something.
CLASHES = ["name", "root", "names", "classes", "columns", "offset", "stored", "size", "method", "crc", "part"]
CLASHES += ["rows", "metadata/x", "self"]


def listed(folder: Path, content: str | dict[str, Any], encoding: str = "utf-8") -> ImageTable:
    """The table that a CSV's text or a Parquet file's columns mean."""
    if isinstance(content, str):
        (folder / "list.csv").write_text(content, encoding=encoding, newline="")
        return ListingSource(folder / "list.csv").table()
    pa.parquet.write_table(pa.table(content), folder / "list.parquet")
    return ListingSource(folder / "list.parquet").table()


def images_of(table: ImageTable) -> list[tuple[str, str]]:
    return [(table.name(row), table.class_names[table.labels[row]]) for row in range(len(table))]


def values(table: ImageTable, column: str) -> list[object]:
    return list(table.metadata[column].to_pylist())


def test_any_name_of_a_column_is_metadata(tmp_path: Path) -> None:
    table = listed(tmp_path, f"path,label,{','.join(CLASHES)}\nx.png,b{',1' * 14}\ny.png,a{',2' * 14}\n")
    assert list(table.metadata) == CLASHES
    assert all(values(table, name) == [2, 1] for name in CLASHES)
    assert images_of(table) == [("y.png", "a"), ("x.png", "b")]
    changed = table.with_column("name", ["p", "q"]).with_column("size", [5, 6])
    assert (values(changed, "name"), values(changed, "size")) == (["p", "q"], [5, 6])
    assert images_of(changed) == images_of(table)


def test_repeated_and_empty_headers_get_numbers(tmp_path: Path) -> None:
    table = listed(tmp_path, "path,label,x,x,x.1,,\na.png,a,1,2,3,4,5\n")
    assert {name: values(table, name) for name in table.metadata} == {
        "x": [1],
        "x.2": [2],
        "x.1": [3],
        "Unnamed: 5": [4],
        "Unnamed: 6": [5],
    }
    pa.parquet.write_table(
        pa.Table.from_arrays([pa.array(["a.png"])] * 4, ["path", "label", "x", "x"]), tmp_path / "x.parquet"
    )
    assert list(ListingSource(tmp_path / "x.parquet").table().metadata) == ["x", "x.1"]


@pytest.mark.parametrize("name", ["path", "label", "split", "is_query", "is_gallery"])
def test_a_column_with_a_meaning_comes_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"has 2 columns '{name}'"):
        listed(tmp_path, f"path,label,split,is_query,is_gallery,{name}\na.png,a,,,,\n")


def test_headers_are_spelled_freely_where_that_is_clear(tmp_path: Path) -> None:
    table = listed(tmp_path, "Path, LABEL ,Split,Camera\na.png,a,train,left\n")
    assert (images_of(table), list(table.metadata)) == ([("a.png", "a")], ["Camera"])
    assert table.split is not None
    table = listed(tmp_path, "path,Path,label\na.png,z,a\n")
    assert (images_of(table), values(table, "Path")) == ([("a.png", "a")], ["z"])
    with pytest.raises(InputError, match="has 2 columns 'label'"):
        listed(tmp_path, "path,Label,LABEL\na.png,a,b\n")


@pytest.mark.parametrize("column", ["path", "label", "split"])
@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"a", True, datetime.date(2000, 1, 1)])
def test_names_are_texts_or_numbers(tmp_path: Path, column: str, value: object) -> None:
    columns = {"path": ["a.png"], "label": ["a"], "split": ["train"], column: [value]}
    with pytest.raises(InputError, match=f"column {column} holds .*; it must be text or numbers"):
        listed(tmp_path, columns)


def test_names_keep_their_digits(tmp_path: Path) -> None:
    content = "path,label\n001,007\n002,1.10\n003,40063811333931234567\n004,NA\n"
    assert images_of(listed(tmp_path, content)) == [
        ("001", "007"),
        ("002", "1.10"),
        ("003", "40063811333931234567"),
        ("004", "NA"),
    ]
    numbers = {"path": [1, 2], "label": pa.array(["x", "y"]).dictionary_encode()}
    assert images_of(listed(tmp_path, numbers)) == [("1", "x"), ("2", "y")]
    assert listed(tmp_path, {"path": ["1"], "label": [7.0]}).class_names == ["7"]
    with pytest.raises(InputError, match="1 rows lack a path or a label"):
        listed(tmp_path, {"path": ["1", "2"], "label": [7.0, float("nan")]})


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1", "-20"], [1, -20]),
        (["1", ""], [1, None]),
        (["1", "NA"], [1, None]),
        (["1.50", "2"], [1.5, 2.0]),
        (["0.5", "1e3"], [0.5, 1000.0]),
        (["true", "FALSE"], [True, False]),
        (["0042", "7"], ["0042", "7"]),
        (["+4912", "7"], ["+4912", "7"]),
        (["40063811333931234567", "7"], ["40063811333931234567", "7"]),
        (["40063811333931234567", "7.5"], ["40063811333931234567", "7.5"]),
        (["1e999", "7"], ["1e999", "7"]),
        (["2024-01-05", "12:30"], ["2024-01-05", "12:30"]),
        (["NA", "DE"], ["NA", "DE"]),
        (["", ""], ["", ""]),
    ],
)
def test_metadata_are_numbers_where_nothing_is_lost(
    tmp_path: Path, texts: list[str], expected: list[object]
) -> None:
    table = listed(
        tmp_path, "path,label,x\n" + "".join(f"{n}.png,a,{text}\n" for n, text in enumerate(texts))
    )
    assert values(table, "x") == expected


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom"])
def test_separators_and_encodings(
    tmp_path: Path, separator: str, encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["path,label,city", "ä.png,ü,Köln", '"b.png","x ""y""",Ulm', ",,", "c.png,z,", ""]
    text = "\r\n".join(lines).replace(",", separator)
    if encoding == "utf-16-le-bom":
        encoding, text = "utf-16-le", "\ufeff" + text
    with caplog.at_level(logging.INFO):
        table = listed(tmp_path, text, encoding)
    assert images_of(table) == [("b.png", 'x "y"'), ("c.png", "z"), ("ä.png", "ü")]
    assert values(table, "city") == ["Ulm", "", "Köln"]
    assert ("separated by" in caplog.text) == (separator != ",")


@pytest.mark.parametrize("first", ["sep=;\r\n", '"sep=;"\n', "\n\n"])
def test_a_first_line_of_excels(tmp_path: Path, first: str) -> None:
    assert images_of(listed(tmp_path, first + "path;label\na,b.png;x\n")) == [("a,b.png", "x")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,label\n\xe4.png,a\n", "is not UTF-8 .*; save it as CSV UTF-8"),
        ("path,label\na.png,a\n".encode("utf-16-le"), "lacks the column 'path'"),
        (b"path,label\na\0.png,a\n", "a path holds a NUL character"),
        (b"path;label\na.png;a;b\n", "row 1 has 3 fields instead of 2"),
        (b'path,label\na.png,"a\n', "cannot be read as a table"),
        (b"", "lacks the column 'path'"),
        (b"sep=;", "lacks the column 'path'"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        ListingSource(tmp_path / "list.csv").table()
    assert "\n" not in str(caught.value)


def test_rows_without_a_label_are_numbered(tmp_path: Path) -> None:
    content = "path,label\na.png,a\nb.png,\nc.png,c\n,d\nd.png,  \n"
    with pytest.raises(InputError, match=r"3 rows lack a path or a label \(row 2, 4, 5; row 1 is the first"):
        listed(tmp_path, content)
    with pytest.raises(InputError, match=r"30 rows lack .*\(row 1, 2, 3, 4, 5, 6, 7, 8, 9, 10; row"):
        listed(tmp_path, {"path": [f"{n}.png" for n in range(30)], "label": [None] * 30})


def test_spaces_around_names_do_not_count(tmp_path: Path) -> None:
    table = listed(tmp_path, "path , label,split\n a.png , x , Train \nb.png,x,TRAIN\nc.png,y, testing\n")
    assert images_of(table) == [("a.png", "x"), ("b.png", "x"), ("c.png", "y")]
    assert table.split is not None
    assert table.split.tolist() == ["train", "train", "test"]


@pytest.mark.parametrize(
    ("marks", "expected", "message"),
    [
        (["test", "", ""], ["test", "train", "train"], "2 images without a split are for training"),
        (["Validation", "", "test"], ["val", "train", "test"], "1 images without a split are for training"),
        (["train", "", "test"], ["train", None, "test"], "1 images without a split are not used"),
        (["train", "valid", "test"], ["train", "val", "test"], ""),
        (["", " ", ""], None, ""),
    ],
)
def test_images_without_a_split(
    tmp_path: Path,
    marks: list[str],
    expected: list[str | None] | None,
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = "".join(f"{n}.png,{n},{mark}\n" for n, mark in enumerate(marks))
    with caplog.at_level(logging.INFO):
        split = listed(tmp_path, f"path,label,split\n{rows}").split
    assert (None if split is None else split.tolist()) == expected
    assert ("without a split" in caplog.text) == bool(message)
    assert message in caplog.text


def test_windows_paths(write_folder: Callable[..., Path], write_zip: Callable[..., Path]) -> None:
    root = write_folder({"a": 1, "b": 1})
    (root / r"a\odd.png").write_bytes(b"a file whose name has a backslash")
    content = "path,label\na\\000.png,a\na\\odd.png,a\n.\\b\\000.png,b\n"
    assert images_of(listed(root, content)) == [
        ("a/000.png", "a"),
        (r"a\odd.png", "a"),
        ("b/000.png", "b"),
    ]
    archive = write_zip({"a": 1, "b": 1})
    (root / "list.csv").write_text("path,label\na\\000.png,a\nb/000.png,b\n")
    table = ListingSource(root / "list.csv", archive).table()
    with zipfile.ZipFile(archive) as opened:
        assert [table.read(row) for row in range(2)] == [opened.read(name) for name in opened.namelist()]


@pytest.mark.parametrize(("of_files", "of_table"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_are_spelled_in_two_ways(
    write_folder: Callable[..., Path], write_zip: Callable[..., Path], of_files: Any, of_table: Any
) -> None:
    in_files, in_table = (unicodedata.normalize(form, "café") for form in (of_files, of_table))
    root, archive = write_folder({in_files: 2, "b": 1}), write_zip({in_files: 2, "b": 1})
    rows = f"{in_table}/000.png,{in_table}\n{in_files}/001.png,{in_files}\nb/000.png,b\n"
    (root / "list.csv").write_text(f"path,label\n{rows}", encoding="utf-8")
    for images in (root, archive):
        table = ListingSource(root / "list.csv", images).table()
        assert table.class_names == ["b", "café"]
        assert [len(table.read(row)) > 0 for row in range(3)] == [True] * 3
    (root / "split.csv").write_text(f"class,split\n{in_table},train\nb,test\n", encoding="utf-8")
    assert FolderSource(root).table().split.tolist() == ["test", "train", "train"]  # type: ignore[union-attr]


def test_a_path_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = listed(tmp_path, "path,label,x\na/b.png,p,1\nc.png,q,2\n./a//b.png,p,3\na/./b.png,p,4\n")
    assert images_of(table) == [("a/b.png", "p"), ("c.png", "q")]
    assert values(table, "x") == [1, 2]
    assert "1 paths are listed more than once and count once: a/b.png" in caplog.text


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("path,label", ["a.png,p", "b.png,q", "./a.png,q"], "a.png is listed with label p and q"),
        ("path,label,split", ["a.png,p,train", "a.png,p,test"], "a.png is listed with split train and test"),
        ("path,label,is_query", ["a.png,p,true", "a.png,p,false"], "a.png is listed with is_query"),
    ],
)
def test_rows_that_contradict_each_other(tmp_path: Path, header: str, rows: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        listed(tmp_path, "\n".join([header, *rows]))


def test_metadata_of_parquet_are_plain_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    time = datetime.datetime(2024, 1, 5, 12, 30)
    columns = {
        "tags": pa.array([["x", "y"], None]),
        "shop": [{"city": "Ulm", "since": datetime.date(2000, 1, 1)}, None],
        "sizes": [[1.5, float("nan")], []],
        "price": [decimal.Decimal("1.50"), None],
        "score": [float("inf"), 2.0],
        "time": [time, None],
        "by_key": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        "kind": pa.array(["u", "v"]).dictionary_encode(),
        "thumb": [b"\x89PNG", b""],
        "pages": [[{"bytes": b""}], None],
    }
    table = listed(tmp_path, {"path": ["a.png", "b.png"], "label": ["a", "b"], **columns})
    assert {name: values(table, name) for name in table.metadata} == {
        "tags": [["x", "y"], None],
        "shop": [{"city": "Ulm", "since": "2000-01-01"}, None],
        "sizes": [[1.5, None], []],
        "price": [1.5, None],
        "score": [None, 2.0],
        "time": ["2024-01-05 12:30:00", None],
        "by_key": ['[["k", 1]]', None],
        "kind": ["u", "v"],
    }
    assert "column thumb of bytes is left out" in caplog.text
    assert "column pages of bytes is left out" in caplog.text


def test_pairs_and_face_lists_are_read_alike(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    root = write_folder({"007": 2, "1.10": 1})
    file = tmp_path / "pairs.csv"
    file.write_text(
        "sep=;\nSame; image_a;image_b\ntrue;007/000.png; 007\\001.png \n0;007/000.png;1.10/000.png\n"
    )
    pairs = read_pairs(file)
    assert (pairs.first, pairs.same.tolist()) == (["007/000", "007/000"], [True, False])
    file.write_text("image_a,image_b,same\na/b,a/c,\n")
    with pytest.raises(InputError, match="column same is empty in 1 rows"):
        read_pairs(file)
    (root / "identity_meta.csv").write_text("class_id;Name;Gender\n007;Bond;m\n", encoding="utf-16")
    assert values(IdentitySource(root).table(), "person") == ["Bond", "Bond", ""]


def test_many_rows(tmp_path: Path) -> None:
    rows = 70_000  # more than are held as Python texts at once
    (tmp_path / "x.csv").write_text("path,label\n" + "".join(f"{n},{n % 7}\n" for n in range(rows)))
    table = read_csv(tmp_path / "x.csv", ("path", "label"))
    assert table.column("path").to_pylist() == [str(n) for n in range(rows)]
    assert len(ListingSource(tmp_path / "x.csv").table()) == rows
