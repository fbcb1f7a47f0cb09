"""A zip archive of class folders, read without unpacking."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from data.file_index import cached_table, with_progress
from data.image_files import Sieve, zip_members
from data.layout import table_from_folders
from data.sources.source import Source
from data.table import ImageTable
from models.errors import InputError


class ZipSource(Source):
    """A zip of class folders; nothing is unpacked.

    A ``split.csv`` (columns class, split) beside the archive gives the split.

    Args:
        path: The archive.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def table(self) -> ImageTable:
        """See :meth:`Source.table`."""
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such file; name a zip archive of class folders")
        split_file = self.path.parent / "split.csv"
        return cached_table(
            "zip", [self.path], lambda: (zip_table(self.path, split_file), [self.path, split_file])
        )


def zip_table(path: Path, split_file: Path | None = None, wrapper: str | None = None) -> ImageTable:
    """The table of one archive's images; ``wrapper`` as in :func:`data.layout.classes_of`.

    Raises:
        InputError: Not an archive, no images, or a ``split_file`` that does not match the classes.
    """
    names, members, folder_of = [], [], []
    folders: dict[str, int] = {}
    sieve = Sieve()
    found = zip_members(path, sieve.passes)
    sieve.warn(path)
    for name, member in with_progress(sorted(found.items()), f"Listing {path.name}"):
        folder = name.rpartition("/")[0]
        names.append(name)
        members.append(member)
        folder_of.append(folders.setdefault(folder, len(folders)))
    return table_from_folders(
        path,
        pa.array(names, pa.large_string()),
        list(folders),
        np.array(folder_of, dtype=np.int64),
        members,
        split_file,
        wrapper,
    )
