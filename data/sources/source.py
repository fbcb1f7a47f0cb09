"""What every source of images is."""

from abc import ABC, abstractmethod
from pathlib import Path

from data.locations import data_root
from data.table import ImageTable
from models.errors import InputError


class Source(ABC):
    """Something that images can be listed from. Its arguments say where; nothing is read before
    :meth:`table`.
    """

    @abstractmethod
    def table(self) -> ImageTable:
        """The index of all images.

        Raises:
            InputError: The source is missing or holds no usable images.
        """


def located(path: str | Path | None, name: str, marker: str = "", *below: str) -> Path:
    """The folder of a data set.

    Args:
        path: The folder, or one that holds it under ``name``; None means the data folder.
        name: Its customary name.
        marker: A file that must be in it, or in one of ``below`` in it.
        *below: Folders in it where ``marker`` may lie.

    Raises:
        InputError: Not found.
    """
    given = data_root() / name if path is None else Path(path).expanduser()
    for folder in (given, given / name):
        if folder.is_dir() and any((folder / sub / marker).exists() for sub in ("", *below)):
            return folder
    lacking = f"{marker} is not in it" if given.is_dir() else "no such folder"
    raise InputError(f"{given}: {lacking}; name the folder of the unpacked set")
