"""Whatever lies in a folder, an archive or a table: no test class is trained on, nothing is left out unsaid,
and nothing but an InputError comes of it.
"""

import csv
import logging
import os
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from hypothesis import given, settings
from hypothesis import strategies as st

from data.image_files import IMAGE_SUFFIXES, TOOL_FOLDERS
from data.sources import FolderSource, ListingSource, Source, ZipSource
from data.splits import split_classes
from data.table import ImageTable
from models.errors import InputError

PARTS = {"train", "Train", "training", "val", "valid", "Validation", "test", "TEST", "testing"}
TESTS = {"test", "testing"}

folder_names = st.sampled_from(
    [
        *sorted(PARTS),
        "train",
        "test",
        "a",
        "b",
        "c",
        "007",
        "1.10",
        "ü",
        "été",
        ".NET",
        "a b",
        "holdout",
        "train_set",
        "test_set",
        "2_test",
        ".git",
    ]
)
file_names = st.sampled_from(
    ["1.png", "2.JPG", "3.jfif", "4.heic", "5", "notes.txt", ".6.png", "ü.bmp", "._1.png"]
)
trees = st.lists(
    st.tuples(st.lists(folder_names, max_size=4), file_names).map(lambda path: "/".join([*path[0], path[1]])),
    min_size=1,
    max_size=12,
    unique=True,
)


@contextmanager
def warned() -> Iterator[list[str]]:
    """The messages logged by ``data`` meanwhile."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("data")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def table_of(source: Source) -> tuple[ImageTable, list[str]] | None:
    """The table and the warnings, or None where the source is refused in one line."""
    with warned() as messages:
        try:
            return source.table(), messages
        except InputError as error:
            refusal = str(error)
    assert "\n" not in refusal
    return None


def training_images(table: ImageTable) -> list[str]:
    """Those in the training part; none where the table has too few classes to be split."""
    try:
        parts = split_classes(table, val_fraction=0)
    except InputError:
        return []
    return [table.name(row) for row in parts.rows("train")]


def is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def is_tools(path: str) -> bool:
    *folders, file = path.split("/")
    return bool(TOOL_FOLDERS.intersection(folders)) or file.startswith("._")


def below_test(path: str) -> bool:
    *above, last = path.split("/")[:-1] or [""]
    return last.lower() in TESTS or any("test" in folder.lower() for folder in above)


def check(table: ImageTable, messages: list[str], files: list[str]) -> None:
    used = table.names.to_pylist()
    said = " ".join(messages)
    for path in {path for path in files if is_image(path)} - set(used):
        hidden = any(part.startswith(".") for part in path.split("/"))
        folder = path.rpartition("/")[0] or "the folder itself"
        assert is_tools(path) or ("hidden files" in said if hidden else folder in said)
    trained = training_images(table)
    if table.split is None:
        assert all(map(below_test, used)) or not any(map(below_test, trained))
        return
    assert None not in table.split
    parts = dict(zip(used, table.split, strict=True))
    if len(set(parts.values())) > 1:  # the names go apart at the folder that says the part
        depth = len(os.path.commonpath(used).split("/")) if os.path.commonpath(used) else 0
        assert {path: path.split("/")[depth].lower().lstrip("2_")[:2] for path in used} == {
            p: parts[p][:2] for p in used
        }
    assert all(parts[path] == "train" for path in trained)


@given(trees)
@settings(max_examples=80)
def test_folders_and_archives(files: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, archive = Path(folder) / "set", Path(folder) / "packed.zip"
        for name in files:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"x")
        with zipfile.ZipFile(archive, "w") as opened:
            for name in files:
                opened.writestr(name.replace("/", "\\"), b"x")
        of_folder, of_archive = table_of(FolderSource(root)), table_of(ZipSource(archive))
        assert (of_folder is None) == (of_archive is None)
        if of_folder is None or of_archive is None:
            return
        for table, messages in (of_folder, of_archive):
            check(table, messages, files)
        assert of_folder[0].class_names == of_archive[0].class_names


def name_of(label: str) -> str:
    return unicodedata.normalize("NFC", label).strip()


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=4)
paths = st.integers(0, 99).map("{}.png".format) | st.sampled_from(
    ["a/1.png", "./a/1.png", r"a\1.png", "b//2.png", " c.png", "007", "ü"]
)
labels = st.sampled_from(["a", " a", "b", "007", "7", "1.10", "ü", "u\u0308"])
parts = st.sampled_from(["", "", "train", " Test", "TESTING", "val", "validation"])
tidy_rows = st.tuples(paths, labels, parts, texts)
any_rows = st.tuples(
    paths | texts, labels | texts, parts | st.just("holdout"), texts | st.integers().map(str)
)
rows = st.lists(tidy_rows, min_size=1, max_size=8, unique_by=lambda row: row[0]) | st.lists(
    any_rows, max_size=8
)


@given(
    rows,
    st.permutations(["path", "Label", "split ", "name"]),
    st.sampled_from([*",;\t|"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    st.booleans(),
)
@settings(max_examples=80)
def test_tables(
    rows: list[tuple[str, ...]], header: list[str], separator: str, encoding: str, says_separator: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "list.csv"
        with file.open("w", newline="", encoding=encoding, errors="replace") as opened:
            opened.write(f"sep={separator}\r\n" if says_separator else "")
            writer = csv.writer(opened, delimiter=separator)
            writer.writerow(header)
            named = [dict(zip(["path", "Label", "split ", "name"], row, strict=True)) for row in rows]
            writer.writerows([row[name] for name in header] for row in named)
        found = table_of(ListingSource(file))
    if found is None:
        return
    table, messages = found
    given = [row for row in rows if any(map(str.strip, row))]
    assert len(table) == len(given) or "listed more than once" in " ".join(messages)
    assert list(table.metadata) == ["name"]
    if encoding != "cp1252":
        assert set(table.class_names) == {name_of(label) for _, label, _, _ in given}
    tested = {name_of(label) for _, label, part, _ in given if part.strip().lower() in TESTS}
    trained = {
        table.class_names[table.labels[table.names.to_pylist().index(n)]] for n in training_images(table)
    }
    assert not tested & trained or encoding == "cp1252"
