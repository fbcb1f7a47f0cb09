"""Labeled Faces in the Wild (Huang et al., 2007)."""

from pathlib import Path

import numpy as np

from data.layout import read_lines
from data.sources.folder import FolderSource
from data.sources.source import Source, located
from data.table import ImageTable
from models.errors import InputError

_PEOPLE = {"peopleDevTrain.txt": "train", "peopleDevTest.txt": "test"}


class LfwSource(Source):
    """A folder for each person; ``peopleDevTrain.txt`` and ``peopleDevTest.txt`` (view 1) give the split.

    Both lists lie in the folder or beside it; without them the classes are split like any others.

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
