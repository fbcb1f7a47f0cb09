"""Reading one image's bytes, from a plain file or straight out of a zip archive.

A zip member is read by its offset instead of through :class:`zipfile.ZipFile`: no handle or lock is
shared, so threads and forked or spawned workers cannot disturb each other, and no worker holds a directory
of the archive (about a kilobyte a member in Python objects).
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models.errors import InputError
from models.preprocess import DecodeLimits, ImageError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
)

_LOCAL_HEADER = struct.Struct("<4s22xHH")


def is_image_name(name: str) -> bool:
    """Whether the name ends as an image file does and is not a hidden file or a macOS resource fork."""
    path = Path(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(
        part.startswith(".") or part == "__MACOSX" for part in path.parts
    )


@dataclass(frozen=True, slots=True)
class Member:
    """Where a zip member's bytes are.

    Attributes:
        offset: Of the local header, in bytes from the start of the archive.
        stored: Compressed size in bytes.
        size: Uncompressed size in bytes.
        method: ``zipfile.ZIP_STORED`` or ``zipfile.ZIP_DEFLATED``.
        crc: CRC-32 of the uncompressed bytes.
    """

    offset: int
    stored: int
    size: int
    method: int
    crc: int


def zip_members(path: Path) -> Iterator[tuple[str, Member]]:
    """Every image of an archive, by name.

    Raises:
        InputError: No zip archive, or one that this reader does not take (encrypted, exotic compression).
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as a zip archive ({error})") from error
    with archive:
        for info in archive.infolist():
            if info.is_dir() or not is_image_name(info.filename):
                continue
            if info.flag_bits & 1:
                raise InputError(f"{path}: {info.filename} is encrypted; pack the images without a password")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(f"{path}: {info.filename} is neither stored nor deflated; pack it anew")
            yield (
                info.filename,
                Member(info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC),
            )


def read_member(path: Path, name: str, member: Member, limits: DecodeLimits) -> bytes:
    """The bytes of one zip member.

    Sizes in an archive are claims: neither more compressed nor more inflated bytes than the limit are ever
    held.

    Raises:
        ImageError: Over the byte limit, or broken.
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
