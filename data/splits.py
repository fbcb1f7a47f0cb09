"""Class-disjoint training, validation and test sets, and the hash that identifies a split."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data.table import ImageTable
from models.errors import InputError

_log = logging.getLogger(__name__)

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
_TRAIN, _VAL, _TEST, _UNUSED = 0, 1, 2, 3


@dataclass(frozen=True)
class Split:
    """The part of each image."""

    parts: NDArray[np.int8]  # position in PARTS of each image, or 3 where it is left out, (N,)
    # SHA-256 over the sorted (class, part) pairs and the images' names and parts: equal for equal splits of
    # the same images.
    hash: str

    def rows(self, part: Part) -> NDArray[np.int64]:
        """The images of a part, int64, ascending."""
        return np.flatnonzero(self.parts == PARTS.index(part))


@dataclass(frozen=True)
class SplitSettings:
    """Settings of a split; stored in checkpoints and bundles, so that a model can be tested on its own split.

    For the fractions and the seed see :func:`split_classes`.
    """

    kind: Literal["classes", "per_image"] = "classes"
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0
    folds: int | None = None  # number of folds of a class-disjoint cross-validation, see class_folds
    fold: int = 0  # to test on, from 0

    def apply(self, table: ImageTable) -> "Split":
        """Split a table.

        Raises:
            InputError: The table cannot be split with these settings.
        """
        if self.folds is not None:
            if not 0 <= self.fold < self.folds:
                raise InputError(f"fold {self.fold} of {self.folds}; folds count from 0")
            return list(class_folds(table, self.folds, self.seed, self.val_fraction))[self.fold]
        divide = split_classes if self.kind == "classes" else split_images
        return divide(table, self.val_fraction, self.test_fraction, self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "SplitSettings":
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: There are unknown settings.
        """
        try:
            return cls(**settings)
        except TypeError as error:
            raise InputError(f"split settings: {error}; export the bundle again") from error


def split_classes(
    table: ImageTable, val_fraction: float = 0.1, test_fraction: float = 0.2, seed: int = 0
) -> Split:
    """The set's own class-disjoint split, or one by a hash of (seed, class name), with validation classes.

    A class keeps its part when images are added; when classes are added, only classes at the borders change.

    Args:
        table: All images.
        val_fraction: Share of the training classes for validation, unless the set has validation classes.
        test_fraction: Share of all classes for testing, unless the set has its own split.
        seed: Of the hash.

    Raises:
        InputError: A single class, too few classes for disjoint parts, or a class in two parts of the set's
            own split.
    """
    _check_fractions(val_fraction, test_fraction)
    present = np.unique(table.labels)
    if len(present) < 2:
        raise InputError(
            f"{table.roots[0]}: only one class ({table.class_names[present[0]]!r}); "
            "metric learning needs several: give each class a folder"
        )
    of_class = np.full(len(table.class_names), _UNUSED, dtype=np.int8)
    if (official := table.split) is not None:
        of_class = _official(table, official)
    else:
        if len(present) < 4:
            raise InputError(
                f"{table.roots[0]}: {len(present)} classes are too few for class-disjoint training and "
                "test sets (two each); add classes, or ask for split: per_image"
            )
        ranked = _by_hash(table, present, f"test:{seed}")
        tested = int(np.clip(round(test_fraction * len(ranked)), 2 if test_fraction else 0, len(ranked) - 2))
        of_class[ranked] = _TRAIN
        of_class[ranked[:tested]] = _TEST
    if val_fraction and not (of_class == _VAL).any():
        training = np.flatnonzero(of_class == _TRAIN)
        if len(training) >= 4:
            ranked = _by_hash(table, training, f"val:{seed}")
            of_class[ranked[: max(2, round(val_fraction * len(ranked)))]] = _VAL
        else:
            _log.warning("%s: %d training classes leave none for validation", table.roots[0], len(training))
    return _finish(table, of_class[table.labels])


def split_images(
    table: ImageTable, val_fraction: float = 0.1, test_fraction: float = 0.2, seed: int = 0
) -> Split:
    """A split of each class's images, for closed sets: the set's own, or by a hash of (seed, image name).

    Metrics on it do not hold for new classes; a warning says so.

    Raises:
        InputError: Fractions outside [0, 1), or neither training nor test images.
    """
    _check_fractions(val_fraction, test_fraction)
    _log.warning(
        "%s: split per image: test classes are seen in training, so the figures do not hold for new classes",
        table.roots[0],
    )
    if table.split is not None:
        names = table.split
        parts = np.full(len(table), _UNUSED, dtype=np.int8)
        for number, part in enumerate(PARTS):
            parts[names == part] = number
    else:
        parts = np.full(len(table), _TRAIN, dtype=np.int8)
        scores = _image_scores(table, f"image:{seed}")
        parts[scores < test_fraction + (1 - test_fraction) * val_fraction] = _VAL
        parts[scores < test_fraction] = _TEST
    return _finish(table, parts)


def select(
    table: ImageTable, part: str | None, settings: Mapping[str, Any] | None = None
) -> tuple[NDArray[np.int64], str | None]:
    """The images of one part of the data, split as for a model's training.

    Args:
        table: All images.
        part: "train", "val" or "test"; "all" or None selects every image.
        settings: The split in a bundle or checkpoint (:meth:`SplitSettings.to_dict`); None or empty means the
            default split.

    Returns:
        The rows, int64, ascending, and the split's hash (None where every image is selected).

    Raises:
        InputError: No such part, or no images in it.
    """
    if part in ("all", None):
        return np.arange(len(table)), None
    if part not in PARTS:
        raise InputError(f"--split {part}: choose among {', '.join(PARTS)} and all")
    split = SplitSettings.from_dict(settings or {}).apply(table)
    rows = split.rows(part)
    if not len(rows):
        raise InputError(f"{table.roots[0]}: has no {part} images; choose another --split")
    return rows, split.hash


def class_folds(table: ImageTable, folds: int, seed: int = 0, val_fraction: float = 0.1) -> Iterator[Split]:
    """Splits of a class-disjoint k-fold cross-validation; the set's own split is ignored.

    Raises:
        InputError: Fewer than two folds, or fewer than two classes a fold.
    """
    present = np.unique(table.labels)
    if folds < 2 or len(present) < 2 * folds:
        raise InputError(
            f"{folds} folds of {len(present)} classes; each fold needs two classes, and two folds at least"
        )
    ranked = _by_hash(table, present, f"fold:{seed}")
    for fold in range(folds):
        of_class = np.full(len(table.class_names), _UNUSED, dtype=np.int8)
        of_class[ranked] = _TRAIN
        of_class[ranked[fold::folds]] = _TEST
        training = np.setdiff1d(ranked, ranked[fold::folds], assume_unique=True)
        if val_fraction and len(training) >= 4:
            order = _by_hash(table, training, f"val:{seed}:{fold}")
            of_class[order[: max(2, round(val_fraction * len(order)))]] = _VAL
        yield _finish(table, of_class[table.labels])


def _check_fractions(val_fraction: float, test_fraction: float) -> None:
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1):
        raise InputError(f"split: fractions {val_fraction} and {test_fraction} must lie in [0, 1)")


def _by_hash(table: ImageTable, classes: NDArray[np.int64], salt: str) -> NDArray[np.int64]:
    digests = [hashlib.sha256(f"{salt}:{table.class_names[c]}".encode()).digest() for c in classes]
    return np.asarray(classes)[sorted(range(len(digests)), key=digests.__getitem__)]


def _image_scores(table: ImageTable, salt: str) -> NDArray[np.float64]:
    words = [
        int.from_bytes(hashlib.sha256(f"{salt}:{name}".encode()).digest()[:8], "big")
        for chunk in table.names.chunks
        for name in chunk.to_pylist()
    ]
    return np.array(words, dtype=np.float64) / 2.0**64


def _official(table: ImageTable, names: NDArray[np.object_]) -> NDArray[np.int8]:
    of_class = np.full(len(table.class_names), _UNUSED, dtype=np.int8)
    for number, part in enumerate(PARTS):
        members = np.unique(table.labels[names == part])
        if len(shared := members[of_class[members] != _UNUSED]):
            raise InputError(
                f"{table.roots[0]}: class {table.class_names[shared[0]]!r} is in both "
                f"{PARTS[of_class[shared[0]]]} and {part} ({len(shared)} such classes); "
                "separate them, or ask for split: per_image"
            )
        of_class[members] = number
    return of_class


def _finish(table: ImageTable, parts: NDArray[np.int8]) -> Split:
    if (parts == _TRAIN).sum() == 0 and (parts == _TEST).sum() == 0:
        raise InputError(f"{table.roots[0]}: the split leaves neither training nor test images")
    digest = hashlib.sha256()
    pairs = np.unique(np.stack([table.labels, parts], axis=1), axis=0)
    named = sorted((table.class_names[label], int(part)) for label, part in pairs if part != _UNUSED)
    for name, part in named:
        digest.update(f"{name}\t{PARTS[part]}\n".encode())
    # Names relative to their roots, so that the hash is the same wherever the set lies.
    start = 0
    for batch in table.rows.select(["name"]).to_batches(max_chunksize=1 << 16):
        names, codes = batch.column(0).to_pylist(), parts[start : start + batch.num_rows]
        digest.update("".join(f"{name}\t{code}\n" for name, code in zip(names, codes, strict=True)).encode())
        start += batch.num_rows
    return Split(parts, digest.hexdigest())
