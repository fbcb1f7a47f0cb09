"""The base class of sources of images."""

import os
from abc import ABC, abstractmethod
from pathlib import Path

from data.table import ImageTable
from models.cache_folder import cache_root
from models.errors import InputError


class Source(ABC):
    """A set of labelled images; nothing is read before :meth:`table`."""

    @abstractmethod
    def table(self) -> ImageTable:
        """The index of all images.

        Raises:
            InputError: The source is missing or has no usable images.
        """


def data_root() -> Path:
    """The folder of data sets: ``$KINDRED_DATA``, or ``data`` in the cache folder."""
    if named := os.environ.get("KINDRED_DATA"):
        return Path(named).expanduser()
    return cache_root() / "data"


def located(path: str | Path | None, name: str, marker: str = "", *below: str) -> Path:
    """The folder of a data set: ``path`` or a folder ``name`` in it; None means the data folder.

    The file ``marker`` must be in it, or in one of its subfolders ``below``.

    Raises:
        InputError: It is not found.
    """
    given = data_root() / name if path is None else Path(path).expanduser()
    for folder in (given, given / name):
        if folder.is_dir() and any((folder / sub / marker).exists() for sub in ("", *below)):
            return folder
    lacking = f"{marker} is not in it" if given.is_dir() else "no such folder"
    raise InputError(f"{given}: {lacking}; name the folder of the unpacked set")
