import pickle
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sources import FolderSource, ZipSource
from data.table import ImageTable, factorize, join_tables
from models.errors import InputError
from models.preprocess import DecodeLimits, ImageError


@given(st.lists(st.text(max_size=3), min_size=1, max_size=30))
def test_factorize_against_numpy(names: list[str]) -> None:
    composed = [unicodedata.normalize("NFC", name) for name in names]
    labels, distinct = factorize(pa.array(names, pa.string()))
    assert distinct == sorted(set(composed))
    assert [distinct[label] for label in labels] == composed
    assert factorize(pa.array(composed, pa.string()))[0].tolist() == labels.tolist()


def test_rows_know_their_image(write_folder: Callable[..., Path]) -> None:
    root = write_folder({"b": 2, "a/x": 3})
    table = FolderSource(root).table()
    assert table.class_names == ["a/x", "b"]
    assert table.labels.tolist() == [0, 0, 0, 1, 1]
    assert table.labels.dtype == np.int64
    assert [table.name(row) for row in (0, 4)] == ["a/x/000.png", "b/001.png"]
    assert table.read(4) == (root / "b" / "001.png").read_bytes()
    assert table.split is None
    assert table.flags("is_query").all()


def test_reading_respects_the_byte_limit(
    write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = FolderSource(write_folder({"a": 1, "b": 1})).table()
    monkeypatch.setattr(ImageTable, "limits", DecodeLimits(max_bytes=10))
    with pytest.raises(ImageError, match="over the limit of 10"):
        table.read(0)


def test_missing_files_are_image_errors(write_folder: Callable[..., Path]) -> None:
    root = write_folder({"a": 1, "b": 1})
    table = FolderSource(root).table()
    (root / "a" / "000.png").unlink()
    with pytest.raises(ImageError, match="cannot be read"):
        table.read(0)


def test_workers_map_the_index_instead_of_copying_it(write_folder: Callable[..., Path]) -> None:
    table = FolderSource(write_folder({"a": 500, "b": 500})).table()
    assert table.index_file is not None
    message = pickle.dumps(table)
    assert len(message) < 1000
    copy = pickle.loads(message)
    assert copy.read(700) == table.read(700)
    assert copy.class_names == table.class_names
    held = pickle.loads(pickle.dumps(table.take(np.array([3, 999]))))
    assert held.read(1) == table.read(999)


def test_joined_tables_share_classes(
    write_zip: Callable[..., Path], write_folder: Callable[..., Path]
) -> None:
    archive = ZipSource(write_zip({"b": 2, "c": 1})).table()
    folder = FolderSource(write_folder({"a": 1, "b": 1})).table()
    joined = join_tables([archive, folder])
    assert joined.class_names == ["a", "b", "c"]
    assert sorted(joined.labels.tolist()) == [0, 1, 1, 1, 2]
    expected = [archive.read(row) for row in range(3)] + [folder.read(row) for row in range(2)]
    assert [joined.read(row) for row in range(5)] == expected
    again = join_tables([joined, folder])
    assert [again.read(row) for row in range(7)] == expected + expected[3:]


def test_columns(write_folder: Callable[..., Path]) -> None:
    table = FolderSource(write_folder({"a": 2, "b": 1})).table()
    table = table.with_column("light", ["day", "night", "day"]).with_column("is_query", [True, None, False])
    assert list(table.metadata) == ["light", "is_query"]
    assert table.flags("is_query").tolist() == [True, False, False]
    changed = table.with_column("light", [1, 2, 3])
    assert changed.metadata["light"].to_pylist() == [1, 2, 3]


def test_fingerprint_tells_sets_apart(write_folder: Callable[..., Path]) -> None:
    table = FolderSource(write_folder({"a": 2, "b": 1})).table()
    other = FolderSource(write_folder({"a": 1, "b": 2}, "others")).table()
    assert table.fingerprint != other.fingerprint
    assert table.fingerprint == FolderSource(table.roots[0]).table().fingerprint


def test_no_images_is_an_input_error(tmp_path: Path) -> None:
    rows = pa.table({"name": pa.array([], pa.large_string()), "label": pa.array([], pa.int32())})
    with pytest.raises(InputError, match="no images found"):
        ImageTable(rows, [], [tmp_path])
