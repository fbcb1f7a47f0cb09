"""An indexed set of labelled images, memory-mapped so that ten million rows need little memory."""

import hashlib
import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.image_files import Member, read_member
from models.errors import InputError
from models.preprocess import DecodeLimits, read_limited

_MEMBER_COLUMNS = ("offset", "stored", "size", "method", "crc")
# Columns with a meaning of their own that are also shown as metadata.
_SHOWN = ("part", "is_query", "is_gallery")
# Number of rows whose files are looked for.
_TRIED = 20
# Prefix of metadata columns in the Arrow table, so that they may have any name.
_METADATA = "metadata/"


class ImageTable:
    """Rows of (image, class, further columns) in Arrow memory; the image files stay in place.

    Args:
        rows: Columns ``name`` (string: path below its root, with "/" as separator), ``label`` (integer:
            position in ``class_names``), ``root`` (integer: position in ``roots``; optional with one root);
            for images in zip archives ``offset``, ``stored``, ``size``, ``method``, ``crc`` (see
            :class:`data.image_files.Member`; a negative offset is a plain file), optionally ``split``
            (string: the set's own split, "train", "val", "test" or null), ``part`` (string: the split of the
            folders, which a list may override), ``is_query`` and ``is_gallery`` (bool).
        class_names: One for each label.
        roots: Folders and zip archives that the names are relative to.
        index_file: The Arrow file that the rows are mapped from; workers open it instead of copying the rows.
        metadata: Further columns of N values under any names, each an Arrow array or a sequence.

    Attributes:
        limits: On the size of one image; the same for every table.

    Raises:
        InputError: There are no images.
    """

    limits: ClassVar[DecodeLimits] = DecodeLimits()

    def __init__(
        self,
        rows: pa.Table,
        class_names: Sequence[str],
        roots: Sequence[Path],
        *,
        index_file: Path | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if rows.num_rows == 0:
            raise InputError(f"{', '.join(map(str, roots))}: no images found; give a folder for each class")
        for name, values in (metadata or {}).items():
            rows = _set(rows, _METADATA + name, values)
        self.rows = rows.combine_chunks() if rows.column("name").num_chunks != 1 else rows
        self.class_names = list(class_names)
        self.roots = [Path(root) for root in roots]
        self.index_file = index_file
        self._names = self.rows.column("name").chunk(0)

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def __reduce__(self) -> Any:
        if self.index_file is not None:
            return ImageTable.load, (self.index_file,)
        return ImageTable, (self.rows, self.class_names, self.roots)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class of each row, int64 (N,)."""
        return np.asarray(self.rows.column("label").to_numpy()).astype(np.int64)

    @property
    def split(self) -> NDArray[np.object_] | None:
        """The set's own split of each row ("train", "val", "test" or None), (N,), or None without a split."""
        if "split" not in self.rows.column_names:
            return None
        column = self.rows.column("split").cast(pa.string())
        return np.asarray(column.to_numpy(zero_copy_only=False))

    @property
    def metadata(self) -> Mapping[str, pa.ChunkedArray]:
        """Metadata columns of N values, by name, with ``part``, ``is_query`` and ``is_gallery``."""
        names = self.rows.column_names
        columns = {
            name.removeprefix(_METADATA): self.rows.column(name)
            for name in names
            if name.startswith(_METADATA)
        }
        shown = [name for name in _SHOWN if name in names and name not in columns]
        return columns | {name: self.rows.column(name) for name in shown}

    def flags(self, name: Literal["is_query", "is_gallery"]) -> NDArray[np.bool_]:
        """One of the two flags, bool (N,); all true where the table does not have it."""
        if name not in self.rows.column_names:
            return np.ones(len(self), dtype=bool)
        return np.asarray(
            pc.fill_null(self.rows.column(name), False).to_numpy(zero_copy_only=False), dtype=bool
        )

    def name(self, row: int) -> str:
        """Path of an image below its root."""
        return str(self._names[row].as_py())

    @property
    def names(self) -> pa.ChunkedArray:
        """Paths of all images below their roots, N strings."""
        return self.rows.column("name")

    @cached_property
    def _root_of(self) -> NDArray[Any] | None:
        if "root" not in self.rows.column_names or len(self.roots) == 1:
            return None
        return np.asarray(self.rows.column("root").to_numpy())

    @cached_property
    def _members(self) -> list[NDArray[Any]] | None:
        if "offset" not in self.rows.column_names:
            return None
        return [np.asarray(self.rows.column(name).to_numpy()) for name in _MEMBER_COLUMNS]

    def read(self, row: int) -> bytes:
        """The encoded bytes of one image; safe to call from any thread or process.

        Raises:
            ImageError: It is missing, over the limit on bytes, or broken in its archive.
        """
        root = self.roots[0 if self._root_of is None else int(self._root_of[row])]
        name = self.name(row)
        if self._members is not None and self._members[0][row] >= 0:
            member = Member(*(int(column[row]) for column in self._members))
            return read_member(root, name, member, self.limits)
        return read_limited(root / name, self.limits)

    def require_files(self) -> None:
        """Try some rows, evenly spaced.

        Raises:
            InputError: None of them leads to a file.
        """
        if self._members is not None:
            return
        for row in np.linspace(0, len(self) - 1, min(len(self), _TRIED)).astype(np.int64).tolist():
            root = self.roots[0 if self._root_of is None else int(self._root_of[row])]
            if os.path.isfile(root / self.name(row)):  # noqa: PTH113  # false, too, for names that are too long
                return
        raise InputError(
            f"{self.roots[0]}: holds none of the images that are listed (tried {min(len(self), _TRIED)}, "
            f"{self.name(0)} first); paths are relative to it"
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over roots, names, labels and class names, which a cache of decoded pixels depends on."""
        digest = hashlib.sha256(json.dumps([self.class_names, [str(root) for root in self.roots]]).encode())
        for name in ("name", "label", *(c for c in ("crc", "size") if c in self.rows.column_names)):
            for batch in self.rows.select([name]).to_batches(max_chunksize=1 << 16):
                digest.update("\n".join(map(str, batch.column(0).to_pylist())).encode())
        return digest.hexdigest()

    def take(self, rows: NDArray[Any]) -> "ImageTable":
        """A table of some rows; labels and class names do not change."""
        return ImageTable(self.rows.take(pa.array(rows)), self.class_names, self.roots)

    def with_column(self, name: str, values: Any) -> "ImageTable":
        """A table with a column of N values added or replaced: ``split``, a flag or metadata."""
        own = name in ("split", "is_query", "is_gallery")
        rows = _set(self.rows, name if own else _METADATA + name, values)
        return ImageTable(rows, self.class_names, self.roots)

    def save(self, path: Path, **extra: str) -> None:
        """Write an Arrow IPC file, which :meth:`load` memory-maps; ``extra`` is stored as schema metadata."""
        about = {
            "class_names": json.dumps(self.class_names),
            "roots": json.dumps([str(root) for root in self.roots]),
            **extra,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(path), "wb") as sink:
            schema = self.rows.schema.with_metadata(about)
            with pa.ipc.new_file(sink, schema) as writer:
                writer.write_table(self.rows.replace_schema_metadata(about), max_chunksize=None)

    @classmethod
    def load(cls, path: Path) -> "ImageTable":
        """Memory-map a file that :meth:`save` wrote."""
        rows = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        about = rows.schema.metadata
        roots = [Path(root) for root in json.loads(about[b"roots"])]
        return cls(rows, json.loads(about[b"class_names"]), roots, index_file=path)


def _set(rows: pa.Table, name: str, values: Any) -> pa.Table:
    """The rows with a column; strings as a dictionary, which takes a few bytes per row."""
    column = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    if pa.types.is_string(column.type):
        column = column.dictionary_encode()
    rows = rows.drop_columns([name]) if name in rows.column_names else rows
    return rows.append_column(name, column)


def factorize(names: pa.Array) -> tuple[NDArray[np.int64], list[str]]:
    """Labels, int64 (N,), for class names, and the sorted distinct names.

    Names are in Unicode's composed form (NFC): file systems and tables may write the same é in two ways.
    """
    encoded = pc.dictionary_encode(names)
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    composed = [unicodedata.normalize("NFC", str(name)) for name in encoded.dictionary.to_pylist()]
    distinct, label_of = np.unique(np.array(composed, dtype=object), return_inverse=True)
    return label_of[np.asarray(encoded.indices)].astype(np.int64), distinct.tolist()


def join_tables(tables: Sequence[ImageTable]) -> ImageTable:
    """Concatenate tables; classes of the same name are merged."""
    names = pa.concat_arrays(
        [pa.array(table.class_names, pa.string()).take(pa.array(table.labels)) for table in tables]
    )
    labels, class_names = factorize(names)
    parts: list[pa.Table] = []
    roots: list[Path] = []
    for table in tables:
        root = np.zeros(len(table), np.int32) if table._root_of is None else table._root_of
        rows = table.rows.drop_columns([c for c in ("root", "label") if c in table.rows.column_names])
        parts.append(rows.append_column("root", pa.array(root + len(roots), pa.int32())))
        roots += table.roots
    rows = pa.concat_tables(parts, promote_options="default")
    for column in _MEMBER_COLUMNS:
        if column in rows.column_names:
            index = rows.column_names.index(column)
            rows = rows.set_column(
                index, column, pc.fill_null(rows.column(column), -1 if column == "offset" else 0)
            )
    return ImageTable(rows.append_column("label", pa.array(labels)), class_names, roots)
