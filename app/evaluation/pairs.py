"""Verification on a list of pairs: a CSV, or a file in the format of LFW's pairs.txt."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.evaluation.evaluation import Evaluation
from data.csv_file import as_flags, read_csv
from models.errors import InputError
from models.metrics import pair_similarity, verification_metrics

FOLDS = 10  # for a CSV without folds


@dataclass(frozen=True)
class PairList:
    """Pairs of image names, without file extensions."""

    first: list[str]
    second: list[str]
    same: NDArray[np.bool_]  # (P,), whether both images are of one class
    folds: NDArray[np.int64]  # (P,), the fold of each pair


def read_pairs(path: Path) -> PairList:
    """Read a list of pairs.

    A CSV has columns image_a, image_b, same (1 or 0) and optionally fold. LFW's pairs.txt starts with the
    number of folds and of pairs of each kind in a fold; a line is `name n m` (same) or `name n other m`
    (different), and image n of a name is `name/name_000n`.

    Raises:
        InputError: the file is missing, or malformed; the message names the line.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file of pairs")
    try:
        return _read_csv(path) if path.suffix.lower() == ".csv" else _read_lfw(path)
    except (KeyError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a list of pairs ({type(error).__name__}: {error})") from error


def _read_csv(path: Path) -> PairList:
    listed = read_csv(path, ("image_a", "image_b", "same"), ("fold",))
    same = as_flags(path, "same", listed.column("same"), complete=True).to_numpy()
    if "fold" in listed.column_names:
        folds = np.array([int(fold) for fold in listed.column("fold").to_pylist()])
    else:
        # The n-th pair of each kind goes into fold n mod 10, so that every fold has both kinds.
        folds = np.where(same, np.cumsum(same), np.cumsum(~same)) % FOLDS
    first, second = (list(map(_stem, listed.column(name).to_pylist())) for name in ("image_a", "image_b"))
    return PairList(first, second, same, folds)


def _read_lfw(path: Path) -> PairList:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = lines[0].split()
    folds, each = (int(header[0]), int(header[1])) if len(header) == 2 else (1, int(header[0]))
    first, second, same = [], [], []
    for number, line in enumerate(lines[1:], start=2):
        words = line.split("\t") if "\t" in line else line.split()
        if not line.strip():
            continue
        if len(words) not in (3, 4):
            raise InputError(f"{path}: line {number} is neither `name n m` nor `name n other m`")
        first.append(_lfw_name(words[0], words[1]))
        second.append(_lfw_name(words[0] if len(words) == 3 else words[2], words[-1]))
        same.append(len(words) == 3)
    if len(same) != folds * each * 2:
        raise InputError(f"{path}: announces {folds * each * 2} pairs and holds {len(same)}")
    return PairList(first, second, np.array(same), np.arange(len(same)) // (2 * each))


def _lfw_name(person: str, number: str) -> str:
    return f"{person}/{person}_{int(number):04d}"


def _stem(name: str) -> str:
    """The name without its extension, because a list may be used with images in another format."""
    name = name.strip().replace("\\", "/")
    return name.rsplit(".", 1)[0] if "." in name.rsplit("/", 1)[-1] else name


def measure_pairs(path: Path, evaluation: Evaluation) -> dict[str, Any]:
    """Verification metrics of every model over the pairs whose images were evaluated.

    Returns:
        Metrics by model name, and the number of `missing_pairs`, with an image outside the evaluated split.

    Raises:
        InputError: there are no images, or they contain none of the pairs.
    """
    if evaluation.items.table is None:
        raise InputError("--pairs names images: give --data")
    pairs = read_pairs(path)
    table = evaluation.items.table
    place: dict[str, int] = {}
    for row in range(len(table)):
        name = _stem(table.name(row))
        place[name] = row
        place.setdefault("/".join(name.split("/")[-2:]), row)  # a list may omit the folders above the class
    rows = [(place.get(a, -1), place.get(b, -1)) for a, b in zip(pairs.first, pairs.second, strict=True)]
    left, right = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    known = (left >= 0) & (right >= 0)
    if not known.any():
        raise InputError(
            f"{path}: none of its images is among the {len(table)} evaluated; check --data and --split"
        )
    found: dict[str, Any] = {"file": str(path), "missing_pairs": int((~known).sum())}
    for model in evaluation.models:
        similarity = pair_similarity(model.vectors[left[known]], model.vectors[right[known]])
        found[model.name] = verification_metrics(similarity, pairs.same[known], pairs.folds[known])
    return found
