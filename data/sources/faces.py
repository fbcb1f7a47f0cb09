"""Sets of faces, with a folder for each person."""

from pathlib import Path

import numpy as np

from data.csv_file import read_csv
from data.layout import read_lines
from data.sources.folder import FolderSource
from data.sources.source import Source, located
from data.table import ImageTable
from models.errors import InputError

_PEOPLE = {"peopleDevTrain.txt": "train", "peopleDevTest.txt": "test"}


class LfwSource(Source):
    """Labeled Faces in the Wild (Huang et al., 2007).

    ``peopleDevTrain.txt`` and ``peopleDevTest.txt`` (view 1) give the split. Both lie in the folder or beside
    it; without them the classes are split like any others.

    Args:
        path: The folder of people, or the one that holds it; by default ``lfw`` in the data folder.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = path

    def table(self) -> ImageTable:
        """See :meth:`Source.table`."""
        folder = located(self.path, "lfw")
        people = next((f for f in sorted(folder.glob("lfw*")) if f.is_dir()), folder)
        table = FolderSource(people).table()
        for lists in (folder, folder.parent):
            if all((lists / name).is_file() for name in _PEOPLE):
                return table.with_column("split", _split(table, lists))
        return table


def _split(table: ImageTable, lists: Path) -> list[str | None]:
    split_of: dict[str, str] = {}
    for name, part in _PEOPLE.items():
        split_of |= {person: part for person, _ in read_lines(lists / name, 2, skip=1)}
    if unknown := split_of.keys() - set(table.class_names):
        raise InputError(
            f"{lists}: {min(unknown)!r} of the people lists has no folder ({len(unknown)} such people)"
        )
    of_class = np.array([split_of.get(name) for name in table.class_names], dtype=object)
    return list(of_class[table.labels])


class IdentitySource(Source):
    """CASIA-WebFace, VGGFace2 and sets laid out like them.

    ``train`` and ``test`` folders above those of the identities (VGGFace2) are the split.

    VGGFace2's ``identity_meta.csv`` in the folder, if any, adds the columns ``person`` and ``gender``.

    Args:
        path: The folder.
        min_images: Identities with fewer images are left out.
    """

    def __init__(self, path: str | Path, min_images: int = 1) -> None:
        self.path, self.min_images = Path(path).expanduser(), min_images

    def table(self) -> ImageTable:
        """See :meth:`Source.table`."""
        table = FolderSource(self.path).table()
        enough = np.bincount(table.labels)[table.labels] >= self.min_images
        if not enough.any():
            raise InputError(f"{self.path}: no identity has min_images={self.min_images} images; lower it")
        if not enough.all():
            table = table.take(np.flatnonzero(enough))
        if (self.path / "identity_meta.csv").is_file():
            about = _meta(self.path / "identity_meta.csv")
            for position, column in enumerate(("person", "gender")):
                of_class = [about.get(name, ("", ""))[position] for name in table.class_names]
                table = table.with_column(column, np.array(of_class, dtype=object)[table.labels])
        return table


def _meta(file: Path) -> dict[str, tuple[str, str]]:
    columns = read_csv(file, ("Class_ID", "Name", "Gender")).select(["Class_ID", "Name", "Gender"])
    return {row["Class_ID"].strip(): (row["Name"], row["Gender"]) for row in columns.to_pylist()}
