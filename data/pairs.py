"""Verification pairs: are these two images of the same class?"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from data.csv_file import as_flags, read_csv
from data.table import ImageTable
from models.errors import InputError


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows of an image table.

    Attributes:
        first: Row of the first image, int64 of shape (N,).
        second: Row of the second image, int64 of shape (N,).
        same: Whether both show the same class, bool of shape (N,).
        fold: Cross-validation fold of each pair, int64 of shape (N,); all 0 where the file has none.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    same: NDArray[np.bool_]
    fold: NDArray[np.int64]


# First image, second image (as <class>/<image> without suffix), same class, fold.
_Pair = tuple[str, str, bool, int]


def read_pairs(file: Path, table: ImageTable) -> Pairs:
    """Read a list of pairs.

    Args:
        file: LFW's text format (``pairs.txt`` with folds, ``pairsDevTest.txt`` without), or a CSV with the
            columns ``image_a``, ``image_b`` (each ``<class>/<image>``) and ``same`` (0 or 1).
        table: The images.

    Raises:
        InputError: Unreadable, or a pair names an image that the table lacks.
    """
    listed = _from_csv(file) if file.suffix.lower() == ".csv" else _from_lfw(file)
    row_of = {_key(name): row for row, name in enumerate(table.names.to_pylist())}
    rows = np.empty((len(listed), 2), dtype=np.int64)
    for number, (first, second, _, _) in enumerate(listed):
        for side, name in enumerate((first, second)):
            if name not in row_of:
                raise InputError(f"{file}: pair {number + 1} names {name!r}, which the images lack")
            rows[number, side] = row_of[name]
    same = np.array([pair[2] for pair in listed], dtype=bool)
    fold = np.array([pair[3] for pair in listed], dtype=np.int64)
    return Pairs(rows[:, 0].copy(), rows[:, 1].copy(), same, fold)


def _key(name: str) -> str:
    return "/".join(PurePosixPath(name.strip().replace("\\", "/")).with_suffix("").parts[-2:])


def _from_csv(file: Path) -> list[_Pair]:
    listed = read_csv(file, ("image_a", "image_b", "same"))
    same = as_flags(file, "same", listed.column("same"), complete=True).to_pylist()
    first, second = (listed.column(name).to_pylist() for name in ("image_a", "image_b"))
    return [(_key(a), _key(b), bool(alike), 0) for a, b, alike in zip(first, second, same, strict=True)]


def _from_lfw(file: Path) -> list[_Pair]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error
    lines = [line.split() for line in text.splitlines() if line.strip()]
    pairs = []
    try:
        # "folds pairs" in view 2, "pairs" in view 1: so many same ones, then so many different ones, a fold.
        a_fold = 2 * int(lines[0][-1])
        for number, fields in enumerate(lines[1:]):
            same = len(fields) == 3
            person, other = fields[0], fields[0 if same else 2]
            first = f"{person}/{person}_{int(fields[1]):04d}"
            pairs.append((first, f"{other}/{other}_{int(fields[-1]):04d}", same, number // a_fold))
    except (IndexError, ValueError) as error:
        raise InputError(f"{file}: not in LFW's pairs format ({error})") from error
    return pairs
