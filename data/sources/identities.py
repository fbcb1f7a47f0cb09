"""Folders of identities: CASIA-WebFace, VGGFace2 and sets laid out like them."""

from pathlib import Path

import numpy as np

from data.csv_file import read_csv
from data.sources.folder import FolderSource
from data.sources.source import Source
from data.table import ImageTable
from models.errors import InputError


class IdentitySource(Source):
    """A folder for each identity; ``train`` and ``test`` folders above them (VGGFace2) are the split.

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
