"""A folder of class folders, or a zip archive of them, which is read without unpacking."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.file_index import cached_table, with_progress
from data.image_files import TOOL_FOLDERS, Sieve, is_utf8, some, zip_members
from data.layout import table_from_folders
from data.sources.source import Source
from data.table import ImageTable
from models.errors import InputError

_log = logging.getLogger(__name__)


class FolderSource(Source):
    """Images in nested class folders: the class is the path of the folder that an image lies in.

    Folders named train, val and test become the split (see :func:`data.layout.classes_of`); a ``split.csv``
    (columns class, split) in the folder takes precedence.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def table(self) -> ImageTable:
        """See :meth:`Source.table`."""
        if not self.path.is_dir():
            raise InputError(f"{self.path}: no such folder; name one that holds a folder for each class")
        return cached_table("folder", [self.path], self._build)

    def _build(self) -> tuple[ImageTable, list[Path]]:
        names: list[pa.Array] = []
        folders: list[str] = []
        counts: list[int] = []
        watched = [self.path / "split.csv"]
        empty: list[str] = []
        sieve = Sieve()
        listing = walk(self.path, sieve.unreadable)
        for folder, files, has_folders in with_progress(listing, f"Listing {self.path.name}"):
            watched.append(self.path / folder)
            images = [path for name in files if sieve.passes(path := f"{folder}/{name}" if folder else name)]
            if images:
                names.append(pa.array(images, pa.large_string()))
                folders.append(folder)
                counts.append(len(images))
            elif not has_folders and not f"/{folder}".count("/."):
                empty.append(folder)
        sieve.warn(self.path)
        if empty and folders:
            _log.warning("%s: %d class folders hold no images: %s", self.path, len(empty), some(empty))
        table = table_from_folders(
            self.path,
            pa.concat_arrays(names) if names else pa.array([], pa.large_string()),
            folders,
            np.repeat(np.arange(len(folders)), counts),
            split_file=self.path / "split.csv",
        )
        return table, watched


def walk(root: Path, unreadable: list[str]) -> Iterator[tuple[str, list[str], bool]]:
    """Each folder below ``root`` as (path below root, sorted file names, whether it has subfolders).

    Symbolic links are followed, each real folder once, with a warning; folders of tools (``.git``) are left
    out. ``unreadable`` receives the paths that cannot be opened or are not UTF-8.
    """

    def below(path: str) -> str:
        return "/".join(Path(path).relative_to(root).parts)

    def failed(error: OSError) -> None:
        unreadable.append(below(error.filename))

    seen: set[tuple[int, int]] = set()
    again: list[str] = []
    for folder, folders, files in os.walk(root, onerror=failed, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            again.append(below(folder))
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        unreadable += [below(f"{folder}/{name}") for name in folders + files if not is_utf8(name)]
        folders[:] = sorted(name for name in folders if is_utf8(name) and name not in TOOL_FOLDERS)
        yield below(folder), sorted(filter(is_utf8, files)), bool(folders)
    if again:
        _log.warning(
            "%s: %d links lead to folders that are listed already, and are left out: %s",
            root,
            len(again),
            some(again),
        )


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
