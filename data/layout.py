"""What folders of images mean: classes, parts named train/val/test, and a ``split.csv`` that says it all."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from data.files import Member
from data.table import ImageTable, factorize
from models.errors import InputError

_log = logging.getLogger(__name__)

_PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def classes_of(folders: Sequence[str], wrapper: str | None = None) -> tuple[list[str], list[str | None]]:
    """Class and part ("train", "val", "test" or None) of each folder that holds images.

    A leading component that all folders share is dropped (archives often wrap everything in one folder), and
    top folders that are all named as parts become the part. Where ``wrapper`` is given, that leading
    component alone is dropped, and no part is looked for.
    """
    if wrapper is not None:
        return [folder.removeprefix(f"{wrapper}/") for folder in folders], [None] * len(folders)
    paths = [folder.split("/") if folder else [] for folder in folders]
    while all(len(path) > 1 for path in paths) and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    parts: list[str | None] = [None] * len(paths)
    if all(len(path) > 1 and path[0].lower() in _PARTS for path in paths):
        parts = [_PARTS[path[0].lower()] for path in paths]
        paths = [path[1:] for path in paths]
    return ["/".join(path) for path in paths], parts


def table_from_folders(
    root: Path,
    names: pa.Array,
    folders: Sequence[str],
    folder_of: NDArray[np.int64],
    members: Sequence[Member] | None = None,
    split_file: Path | None = None,
    wrapper: str | None = None,
) -> ImageTable:
    """The table of a folder or archive whose folder names are the classes.

    Args:
        root: The folder or archive.
        names: Path of each image below it.
        folders: The folders that hold images, "" for the root itself.
        folder_of: Position in ``folders`` of each image, int64 of shape (N,).
        members: Where each image lies in the archive; None for a folder.
        split_file: A CSV with columns ``class`` and ``split``; any other column describes the class.
        wrapper: See :func:`classes_of`.

    Raises:
        InputError: No class folders, or a ``split_file`` that does not fit.
    """
    classes, parts = classes_of(folders, wrapper)
    stray = np.array([not name for name in classes], dtype=bool)
    if len(folders) and stray.all():
        raise InputError(
            f"{root}: images lie outside of class folders; put each class into a folder of its own"
        )
    keep = np.arange(len(names))
    if stray.any():
        keep = np.flatnonzero(~stray[folder_of])
        _log.warning("%s: %d images outside of class folders are left out", root, len(names) - len(keep))
    if len(folders):
        class_names = pa.array(classes, pa.string()).take(pa.array(folder_of[keep]))
        labels, distinct = factorize(class_names)
    else:
        labels, distinct = np.zeros(0, np.int64), []
    order = np.argsort(labels, kind="stable")  # rows of a class lie together: reads and caches stay local
    keep, labels = keep[order], labels[order]
    columns = {"name": names.take(pa.array(keep)), "label": pa.array(labels, pa.int32())}
    if members is not None:
        columns |= member_columns(members, keep)
    if any(parts):
        part = pa.array(parts, pa.string()).dictionary_encode()
        columns["part"] = part.take(pa.array(folder_of[keep]))
        columns["split"] = columns["part"]
    if split_file is not None and split_file.is_file():
        columns |= class_columns(split_file, distinct, labels)
    return ImageTable(pa.table(columns), distinct, [root])


def member_columns(members: Sequence[Member], rows: NDArray[np.int64]) -> dict[str, pa.Array]:
    """The table's columns that say where zip members lie, for some of the members."""
    kinds = {
        "offset": pa.int64(),
        "stored": pa.int64(),
        "size": pa.int64(),
        "method": pa.int8(),
        "crc": pa.uint32(),
    }
    return {
        field: pa.array([getattr(members[row], field) for row in rows.tolist()], kind)
        for field, kind in kinds.items()
    }


def class_columns(file: Path, class_names: list[str], labels: NDArray[np.int64]) -> dict[str, pa.Array]:
    """The columns of a per-class CSV (``class``, ``split``, …) spread over the images.

    Raises:
        InputError: Unreadable, no such columns, a class twice, an unknown split, or classes missing.
    """
    try:
        listed = pa.csv.read_csv(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{file}: cannot be read as CSV ({error})") from error
    if not {"class", "split"} <= set(listed.column_names):
        raise InputError(f"{file}: needs the columns class and split")
    position = {str(name): row for row, name in enumerate(listed.column("class").to_pylist())}
    if len(position) != listed.num_rows:
        raise InputError(f"{file}: names a class twice; give each class one row")
    if unknown := {str(s) for s in listed.column("split").to_pylist()} - set(_PARTS.values()):
        raise InputError(f"{file}: split {min(unknown)!r} is none of train, val, test")
    if missing := [name for name in class_names if name not in position]:
        raise InputError(
            f"{file}: lacks {len(missing)} classes, {missing[0]!r} first; list every class or remove the file"
        )
    rows = np.array([position[name] for name in class_names], dtype=np.int64)[labels]
    spread = {}
    for name in listed.column_names:
        if name in ("class", "images"):
            continue
        column = listed.column(name).combine_chunks()
        column = column.dictionary_encode() if pa.types.is_string(column.type) else column
        spread[name] = column.take(pa.array(rows))
    return spread


def table_from_columns(root: Path, names: pa.Array, classes: pa.Array, **columns: Any) -> ImageTable:
    """The table of a set that lists its images and their classes in files.

    Args:
        root: Folder that the names are relative to.
        names: Path of each image, N strings.
        classes: Class of each image, N strings.
        **columns: Further columns of N values, such as ``split`` or ``is_query``.

    Raises:
        InputError: No images listed.
    """
    if not len(names):
        raise InputError(f"{root}: its list of images is empty")
    labels, class_names = factorize(classes)
    order = pa.array(np.argsort(labels, kind="stable"))
    further = {name: _compact(pa.array(values)) for name, values in columns.items()}
    rows = pa.table({"name": names, "label": pa.array(labels, pa.int32()), **further})
    return ImageTable(rows.take(order), class_names, [root])


def _compact(values: pa.Array) -> pa.Array:
    """Repeated texts as a dictionary: a few bytes a row."""
    return values.dictionary_encode() if pa.types.is_string(values.type) else values


def read_lines(file: Path, fields: int, skip: int = 0) -> list[list[str]]:
    """The lines of a data set's list, split at white space.

    Raises:
        InputError: The file is missing, or a line has another number of fields.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()[skip:]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); is the data set complete?") from error
    rows = [line.split() for line in lines if line.strip()]
    for number, row in enumerate(rows, start=skip + 1):
        if len(row) != fields:
            raise InputError(f"{file}: line {number} has {len(row)} fields instead of {fields}")
    return rows
