"""A folder of class folders."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.files import is_image_name
from data.index import cached_table, with_progress
from data.layout import table_from_folders
from data.sources.source import Source
from data.table import ImageTable
from models.errors import InputError

_log = logging.getLogger(__name__)


class FolderSource(Source):
    """Images in nested class folders: the class is the path of the folder that an image lies in.

    Top folders named train, val and test become the split; a ``split.csv`` (columns class, split) in the
    folder wins over them.

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
        for folder, files, has_folders in with_progress(walk(self.path), f"Listing {self.path.name}"):
            watched.append(self.path / folder)
            images = [f"{folder}/{name}" if folder else name for name in files if is_image_name(name)]
            if images:
                names.append(pa.array(images, pa.large_string()))
                folders.append(folder)
                counts.append(len(images))
            elif not has_folders:
                empty.append(folder)
        if empty and folders:
            _log.warning(
                "%s: %d class folders hold no images: %s", self.path, len(empty), ", ".join(empty[:20])
            )
        table = table_from_folders(
            self.path,
            pa.concat_arrays(names) if names else pa.array([], pa.large_string()),
            folders,
            np.repeat(np.arange(len(folders)), counts),
            split_file=self.path / "split.csv",
        )
        return table, watched


def walk(root: Path) -> Iterator[tuple[str, list[str], bool]]:
    """Each folder below ``root`` as (its path below it, sorted file names, whether it has folders).

    Symbolic links are followed, each real folder once.
    """
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(folder).relative_to(root).as_posix()
        yield "" if below == "." else below, sorted(files), bool(folders)
