"""Classes and splits of folders of images: class folders, train/val/test folders, ``split.csv``."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.csv_file import read_csv, with_type
from data.image_files import Member, some
from data.table import ImageTable, factorize
from models.errors import InputError

_log = logging.getLogger(__name__)

# Names of the parts of a split in folders and columns, in any letter case.
_PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}

_Path = tuple[str, ...]

_REMEDY = "put train and test folders at the top, each with class folders, or give a split.csv"


def classes_of(
    folders: Sequence[str], wrapper: str | None = None, *, decided: bool = False
) -> tuple[list[str], list[str | None]]:
    """Class ("" where images lie outside of classes) and part ("train", "val", "test" or None) of folders.

    Folders named as parts are a split where at least two parts lie beside each other in one place, at any
    depth, with class folders in them; images elsewhere then belong to no class. Their names may hold further
    words if these are the same (training_set beside test_set). Otherwise leading components that all folders
    share are dropped (archives often wrap everything in one folder), and the rest is the class.

    Args:
        folders: Paths of the folders that hold images, "" for the root.
        wrapper: If given, only this leading component is dropped, and parts are not searched for.
        decided: Whether a list gives the split; folders that do not form a clear split are then classes.

    Returns:
        Classes and parts, one for each folder.

    Raises:
        InputError: The names look like a split, but an unclear one.
    """
    if wrapper is not None:
        return [folder.removeprefix(f"{wrapper}/") for folder in folders], [None] * len(folders)
    paths = [tuple(folder.split("/")) if folder else () for folder in folders]
    split_of = _splits(paths, plain_names=decided)
    places = sorted({place for place in split_of if place is not None})
    if len(places) == 1:
        start = len(places[0][0]) + 1
        kept = [
            path if place is not None and len(path) > start else ()
            for path, place in zip(paths, split_of, strict=True)
        ]
        if any(kept):
            _refuse_query_folders(kept)
            parts = [_part(path[start - 1])[0] if path else None for path in kept]
            if all(len(path) > start + 1 and path[start] == path[start - 1] for path in kept if path):
                start += 1  # train/train/a beside test/test/b
            return ["/".join(path[start:]) for path in kept], parts
        if not decided:
            raise InputError("its split folders hold no class folders; put class folders into train and test")
    elif places and not decided:
        one, other = (" ".join(["/".join(parent) or "the top", *words]) for parent, words in places[:2])
        raise InputError(
            f"train and test folders lie in {len(places)} places, among them {one} and {other}; {_REMEDY}"
        )
    while (named := [path for path in paths if path]) and len({path[0] for path in named}) == 1:
        if min(map(len, named)) == 1:
            break
        paths = [path[1:] for path in paths]
    if not decided:
        _refuse_half_split(paths)
        _refuse_query_folders(paths)
    return ["/".join(path) for path in paths], [None] * len(paths)


def _part(folder: str) -> tuple[str | None, _Path]:
    """The part that a folder's name tells, or None, and its other words: "test" and ("set",) of test_set."""
    name = folder.lower()
    if not any(start in name for start in ("train", "val", "test", "dev")):  # fast, for a million folders
        return None, ()
    words = re.findall(r"[^\W\d_]+", name)
    told = [_PARTS[word] for word in words if word in _PARTS]
    return told[0] if len(told) == 1 else None, tuple(word for word in words if word not in _PARTS)


def _splits(paths: Sequence[_Path], *, plain_names: bool) -> list[tuple[_Path, _Path] | None]:
    """For each path, the split that it lies in: (the folder above the parts, their names' other words).

    Names with other words do not count where there are plain ones (train_masks beside train and test), nor if
    ``plain_names`` says so.
    """
    places = [
        {(path[:depth], others): part for depth, (part, others) in enumerate(map(_part, path)) if part}
        for path in paths
    ]
    parts: dict[tuple[_Path, _Path], set[str]] = {}
    for found in places:
        for place, part in found.items():
            parts.setdefault(place, set()).add(part)
    splits = {place for place, told in parts.items() if len(told) > 1}
    plain = {place for place in splits if not place[1]}
    splits = plain if plain or plain_names else splits
    return [next((place for place in found if place in splits), None) for found in places]


def _refuse_half_split(paths: Sequence[_Path]) -> None:
    """Refuse folders named as parts without a counterpart beside them where there are other images.

    A single such folder that holds images itself is a class (vehicles: car, bus, train), unless it is called
    test: a test set taken for a class would be trained on. Names with other words may be classes, too
    (train_station), unless one of them is test and they hold folders.
    """
    told = {path[: n + 1]: _part(folder) for path in paths for n, folder in enumerate(path)}
    above = {path[:n] for path in paths for n in range(len(path))}
    plain = {path: part for path, (part, others) in told.items() if part and not others}
    several = len(set(plain.values())) > 1
    marked = {path for path, part in plain.items() if several or part == "test" or path in above}
    marked |= {path for path, (part, _) in told.items() if part == "test" and path in above}
    beside = sorted(
        path for path in paths if path and not any(path[: n + 1] in marked for n in range(len(path)))
    )
    if marked and (several or beside):
        first, *rest = sorted(marked)
        others = some("/".join(path) for path in [*rest, *beside])
        raise InputError(
            f"the folder {'/'.join(first)} looks like a part of a split, but beside it there are {others}; "
            f"{_REMEDY}; rename it if it is a class"
        )


def _refuse_query_folders(paths: Sequence[_Path]) -> None:
    """Refuse query and gallery folders beside each other: their classes would count as different ones."""
    roles: dict[tuple[_Path, _Path], set[str]] = {}
    for path in paths:
        for n, folder in enumerate(path[:-1]):
            if (role := folder.lower()) in ("query", "gallery"):
                roles.setdefault((path[:n], path[n + 1 :]), set()).add(role)
    if both := next((classes for (_, classes), role in roles.items() if len(role) > 1), None):
        raise InputError(
            f"the class {'/'.join(both)} is in the folders query and gallery; list the images in a table "
            "with the columns path, label, is_query and is_gallery"
        )


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
        folder_of: Position in ``folders`` of each image, int64 (N,).
        members: Location of each image in the archive; None for a folder.
        split_file: A CSV with columns ``class`` and ``split``; other columns are metadata of the class.
        wrapper: See :func:`classes_of`.

    Raises:
        InputError: No class folders, an unclear split, or a ``split_file`` that does not match the classes.
    """
    if split_file is not None and not split_file.is_file():
        split_file = None
    try:
        classes, parts = classes_of(folders, wrapper, decided=split_file is not None)
    except InputError as error:
        raise InputError(f"{root}: {error}") from error
    stray = np.array([not name for name in classes], dtype=bool)
    if len(folders) and stray.all():
        raise InputError(
            f"{root}: images lie outside of class folders; put each class into a folder of its own"
        )
    keep = np.arange(len(names))
    if stray.any():
        keep = np.flatnonzero(~stray[folder_of])
        _log.warning(
            "%s: %d images outside of class folders are left out, in %s",
            root,
            len(names) - len(keep),
            some(folder or "the folder itself" for folder, out in zip(folders, stray, strict=True) if out),
        )
    if len(folders):
        class_names = pa.array(classes, pa.string()).take(pa.array(folder_of[keep]))
        labels, distinct = factorize(class_names)
    else:
        labels, distinct = np.zeros(0, np.int64), []
    order = np.argsort(labels, kind="stable")  # rows of a class are adjacent, so that reads are local
    keep, labels = keep[order], labels[order]
    columns = {"name": names.take(pa.array(keep)), "label": pa.array(labels, pa.int32())}
    if members is not None:
        columns |= member_columns(members, keep)
    if any(parts):
        part = pa.array(parts, pa.string()).dictionary_encode()
        columns["part"] = part.take(pa.array(folder_of[keep]))
        columns["split"] = columns["part"]
    metadata: dict[str, pa.Array] = {}
    if split_file is not None:
        split, metadata = class_columns(split_file, distinct, labels)
        if split.null_count < len(split):
            columns["split"] = split
    return ImageTable(pa.table(columns), distinct, [root], metadata=metadata)


def member_columns(members: Sequence[Member], rows: NDArray[np.int64]) -> dict[str, pa.Array]:
    """The table's columns with the locations of some zip members."""
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


def class_columns(
    file: Path, class_names: list[str], labels: NDArray[np.int64]
) -> tuple[pa.Array, dict[str, pa.Array]]:
    """The split and the metadata of a per-class CSV (``class``, ``split``, …), for each image.

    Raises:
        InputError: Unreadable, missing columns, a duplicate class, an unknown split, or missing classes.
    """
    listed = read_csv(file, ("class", "split")).combine_chunks()
    columns = {name: listed.column(name).combine_chunks() for name in listed.column_names}
    classes = columns.pop("class")
    classes = pc.utf8_normalize(pc.utf8_trim_whitespace(classes), form="NFC")
    position = {name: row for row, name in enumerate(classes.to_pylist())}
    if len(position) != len(classes):
        raise InputError(f"{file}: names a class twice; give each class one row")
    if missing := [name for name in class_names if name.strip() not in position]:
        raise InputError(
            f"{file}: lacks {len(missing)} classes, {missing[0]!r} first; list every class or remove the file"
        )
    of_class = pa.array([position[name.strip()] for name in class_names], pa.int64())
    rows = of_class.take(pa.array(labels))
    split = split_parts(file, columns.pop("split"), "classes").dictionary_encode().take(rows)
    return split, {name: with_type(values).take(rows) for name, values in columns.items()}


def split_parts(file: Path, values: pa.Array, what: str) -> pa.Array:
    """The column ``split`` of a list as "train", "val", "test" or null.

    The names of split folders are understood, in any letter case. Rows without a value are for training where
    only others are marked for testing or validation; where some are marked for training, they are not used.

    ``what`` its rows are, "classes" or "images", is for messages.

    Raises:
        InputError: Another value.
    """
    words = pc.dictionary_encode(pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(values, ""))))
    distinct = words.dictionary.to_pylist()
    if unknown := set(distinct) - _PARTS.keys() - {""}:
        raise InputError(f"{file}: split {min(unknown)!r} is none of train, val, test")
    parts = pa.array([_PARTS.get(word) for word in distinct], pa.string())
    split = parts.take(words.indices)
    if "train" in parts.to_pylist():
        if split.null_count:
            _log.warning("%s: %d %s without a split are not used", file, split.null_count, what)
    elif split.null_count < len(split):
        _log.info("%s: %d %s without a split are for training", file, split.null_count, what)
        split = split.fill_null("train")
    return split


def table_from_columns(
    root: Path, names: pa.Array, classes: pa.Array, metadata: Mapping[str, Any] | None = None, **columns: Any
) -> ImageTable:
    """The table of a set that lists its images and their classes in files.

    Args:
        root: Folder that the names are relative to.
        names: Path of each image, N strings.
        classes: Class of each image, N strings.
        metadata: Further columns of N values, under any names.
        **columns: Columns of N values that :class:`data.table.ImageTable` knows: ``split``, ``is_query``,
            ``is_gallery``, and the locations of zip members.

    Raises:
        InputError: No images are listed.
    """
    if not len(names):
        raise InputError(f"{root}: its list of images is empty")
    labels, class_names = factorize(classes)
    order = pa.array(np.argsort(labels, kind="stable"))
    own = {name: _compact(pa.array(values)) for name, values in columns.items()}
    rows = pa.table({"name": names, "label": pa.array(labels, pa.int32()), **own})
    further = {name: pa.array(values).take(order) for name, values in (metadata or {}).items()}
    return ImageTable(rows.take(order), class_names, [root], metadata=further)


def _compact(values: pa.Array) -> pa.Array:
    """Strings as a dictionary, which takes a few bytes per row."""
    return values.dictionary_encode() if pa.types.is_string(values.type) else values


def read_lines(file: Path, fields: int, skip: int = 0) -> list[list[str]]:
    """The lines of a data set's list, split at whitespace.

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
