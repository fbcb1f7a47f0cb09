"""Reading one image's bytes, from a plain file or straight out of a zip archive.

A zip member is read by its offset instead of through :class:`zipfile.ZipFile`: threads and worker processes
share no handle or lock, and no worker holds the archive's directory (about a kilobyte per member in Python
objects).
"""

import logging
import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from models.errors import InputError
from models.preprocess import FORMATS, DecodeLimits, ImageError

_log = logging.getLogger(__name__)

# A .dib file holds a BMP; an .mpo file begins with a JPEG.
IMAGE_SUFFIXES = frozenset(
    suffix
    for suffix, kind in Image.registered_extensions().items()
    if kind in FORMATS or kind in ("DIB", "MPO")
)

# Endings of other files that usually lie beside images; further unknown endings are warned about.
_NO_IMAGES = frozenset(
    {".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".log"}
    | {".md", ".rst", ".html", ".htm", ".css", ".js", ".pdf", ".doc", ".docx", ".odt", ".rtf", ".xls"}
    | {".mat", ".npy", ".npz", ".pkl", ".parquet", ".arrow", ".h5", ".hdf5", ".pt", ".pth", ".db", ".sqlite"}
    | {".xlsx", ".py", ".pyc", ".ipynb", ".m", ".sh", ".bat", ".lock", ".url", ".lnk"}
)
_NO_IMAGE_NAMES = frozenset({"readme", "license", "licence", "makefile"})

# Folders of tools and operating systems.
TOOL_FOLDERS = frozenset(
    {"__MACOSX", "@eaDir", ".AppleDouble", ".Spotlight-V100", ".Trashes", ".cache", ".dvc", ".fseventsd"}
    | {".git", ".hg", ".idea", ".ipynb_checkpoints", ".svn", ".thumbnails", ".venv", ".vscode"}
)

_NAMED_AT_MOST = 20

_LOCAL_HEADER = struct.Struct("<4s22xHH")


def is_utf8(name: str) -> bool:
    """Whether a file's name is valid UTF-8, which Arrow, JSON and logs need."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """A file's name, with bytes that are not UTF-8 escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def some(names: Iterable[str]) -> str:
    """The first twenty names, and the number of others."""
    listed = list(names)
    more = f" and {len(listed) - _NAMED_AT_MOST} more" if len(listed) > _NAMED_AT_MOST else ""
    return ", ".join(listed[:_NAMED_AT_MOST]) + more


class Sieve:
    """Recognizes images by their names, and collects other files that deserve a warning."""

    def __init__(self) -> None:
        self.unreadable: list[str] = []
        self._hidden: dict[str, None] = {}
        self._unknown: Counter[str] = Counter()

    def passes(self, name: str) -> bool:
        """Whether a file, by its path below the root with "/" as separator, is an image to use."""
        *folders, file = parts = name.split("/")
        if TOOL_FOLDERS.intersection(folders) or file.startswith("._"):
            return False
        suffix = PurePosixPath(file).suffix.lower()
        hidden = next((n for n, part in enumerate(parts) if part.startswith(".")), None)
        if suffix in IMAGE_SUFFIXES:
            if hidden is not None:
                self._hidden["/".join(parts[: hidden + 1])] = None
            return hidden is None
        if hidden is None and suffix not in _NO_IMAGES and file.lower() not in _NO_IMAGE_NAMES:
            self._unknown[suffix or "without ending"] += 1
        return False

    def warn(self, root: Path) -> None:
        """Log one line for each kind of file that is left out."""
        if self.unreadable:
            _log.warning(
                "%s: %d files or folders are left out, whose names are not UTF-8 or which cannot be opened; "
                "rename them or give access: %s",
                root,
                len(self.unreadable),
                some(map(printable, self.unreadable)),
            )
        if self._hidden:
            _log.warning(
                "%s: %d hidden files or folders with images are left out; rename them without the dot: %s",
                root,
                len(self._hidden),
                some(self._hidden),
            )
        if self._unknown:
            _log.warning(
                "%s: %d files are not read; convert images to JPEG or PNG: %s",
                root,
                self._unknown.total(),
                some(f"{count} {suffix}" for suffix, count in self._unknown.most_common()),
            )


@dataclass(frozen=True, slots=True)
class Member:
    """The location of a zip member's bytes."""

    offset: int  # of the local header, in bytes from the start of the archive
    stored: int  # compressed size in bytes
    size: int  # uncompressed size in bytes
    method: int  # zipfile.ZIP_STORED or zipfile.ZIP_DEFLATED
    crc: int  # CRC-32 of the uncompressed bytes


def zip_members(path: Path, wanted: Callable[[str], bool]) -> dict[str, Member]:
    """The files of an archive with ``wanted`` names, by name, in the archive's order.

    Backslashes in names (archives made on Windows) become "/". Of files with the same name the last one
    counts, as for ``unzip``; a warning lists them.

    Raises:
        InputError: Not a zip archive, or an unsupported one (encrypted, exotic compression).
    """
    members: dict[str, Member] = {}
    again: dict[str, None] = {}
    for info in _entries(path):
        name = PurePosixPath(info.filename.replace("\\", "/")).as_posix()
        if info.filename.endswith(("/", "\\")) or not wanted(name):
            continue
        if info.flag_bits & 1:
            raise InputError(f"{path}: {name} is encrypted; pack the images without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{path}: {name} is neither stored nor deflated; pack it anew")
        if name in members:
            again[name] = None
        members[name] = Member(
            info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC
        )
    if again:
        _log.warning(
            "%s: %d names come more than once; the last file of each counts: %s",
            path,
            len(again),
            some(again),
        )
    return members


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        reason = "a name in it is not UTF-8" if isinstance(error, UnicodeError) else error
        raise InputError(f"{path}: cannot be read as a zip archive ({reason}); pack it anew") from error


def read_member(path: Path, name: str, member: Member, limits: DecodeLimits) -> bytes:
    """The bytes of one zip member.

    Sizes in an archive may be wrong: no more than the limit is read or decompressed.

    Raises:
        ImageError: Over the limit on bytes, or broken.
    """
    if max(member.size, member.stored) > limits.max_bytes:
        raise ImageError(
            f"{name}: {max(member.size, member.stored)} bytes are over the limit of {limits.max_bytes}; "
            "shrink the image"
        )
    try:
        with path.open("rb") as file:
            file.seek(member.offset)
            signature, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            if signature != b"PK\x03\x04":
                raise ImageError(f"{name}: {path} has changed since it was indexed")
            file.seek(name_length + extra_length, 1)
            content = file.read(member.stored)
        if member.method == zipfile.ZIP_DEFLATED:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.size + 1)
    except (OSError, struct.error, zlib.error) as error:
        raise ImageError(f"{name}: cannot be read from {path} ({error})") from error
    if len(content) != member.size or zlib.crc32(content) != member.crc:
        raise ImageError(f"{name}: broken in {path} (size or checksum differ)")
    return content
