"""The index of a data set's files: built once, cached, and rebuilt when a file or folder has changed."""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from rich.console import Console
from rich.progress import track

from data.image_files import is_utf8, printable
from data.table import ImageTable
from models.cache_folder import cache_root
from models.errors import InputError
from models.files import replacing

_log = logging.getLogger(__name__)

# Increase when the cached index or its reading of folders and tables changes, so that older ones are rebuilt.
_FORMAT = 3

Entry = TypeVar("Entry")


def stamp(path: Path) -> list[Any]:
    """[path, time, size], which changes with a file or a folder's entries; [path, None, 0] where absent."""
    try:
        status = path.stat()
    except OSError:
        return [str(path), None, 0]
    # The size of a folder depends on the file system.
    return [str(path), status.st_mtime_ns, 0 if path.is_dir() else status.st_size]


def with_progress(entries: Iterable[Entry], description: str) -> Iterable[Entry]:
    """The same entries, with a progress bar on standard error that disappears at the end."""
    return track(entries, description=description, console=Console(stderr=True), transient=True)


def cached_table(
    kind: str, paths: Sequence[Path], build: Callable[[], tuple[ImageTable, list[Path]]]
) -> ImageTable:
    """The table that ``build`` returns, or the cached one where nothing has changed since.

    Args:
        kind: Distinguishes sources that read the same paths differently.
        paths: Files and folders that the user named.
        build: Returns the table, and every file and folder whose change makes it stale.

    Raises:
        InputError: A path is not UTF-8, or ``build`` raises it.
    """
    if wrong := next((str(path) for path in paths if not is_utf8(str(path))), None):
        raise InputError(f"{printable(wrong)}: the path is not UTF-8; rename the folder or file")
    key = hashlib.sha256(json.dumps([_FORMAT, kind, *(str(path.absolute()) for path in paths)]).encode())
    file = cache_root() / "index" / f"{paths[0].stem[:40]}-{key.hexdigest()[:16]}.arrow"
    if (kept := _fresh(file)) is not None:
        return kept
    table, watched = build()
    try:
        with replacing(file) as fresh:
            table.save(fresh, stamps=json.dumps([stamp(path) for path in watched]))
    except OSError as error:
        _warn_once(file.parent, error.strerror or str(error))
        return table
    return ImageTable.load(file)


@functools.cache
def _warn_once(folder: Path, reason: str) -> None:
    _log.warning(
        "%s: the index of the images cannot be kept there (%s), so that it is built each time; "
        "set KINDRED_CACHE to a folder that can be written",
        folder,
        reason,
    )


def _fresh(file: Path) -> ImageTable | None:
    try:
        table = ImageTable.load(file)
        stamps = json.loads(table.rows.schema.metadata[b"stamps"])
    except (OSError, pa.ArrowInvalid, KeyError, ValueError):
        return None  # missing, from another version, or damaged
    return table if all(stamp(Path(entry[0])) == entry for entry in stamps) else None
