import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data.image_files import Sieve, read_member, zip_members
from models.errors import InputError
from models.preprocess import DecodeLimits, ImageError


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_read_as_zipfile_reads_them(write_zip: Callable[..., Path], compression: int) -> None:
    path = write_zip({"a": 3, "ü/b": 2}, compression=compression)
    with zipfile.ZipFile(path) as archive:
        expected = {name: archive.read(name) for name in archive.namelist()}
    members = zip_members(path, bool)
    assert {name: read_member(path, name, m, DecodeLimits()) for name, m in members.items()} == expected


def test_only_images_count(write_zip: Callable[..., Path]) -> None:
    path = write_zip({"a": 1})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/readme.txt", "x")
        archive.writestr("__MACOSX/a/._000.png", "x")
        archive.writestr("a/.hidden.png", "x")
    assert list(zip_members(path, Sieve().passes)) == ["a/000.png"]
    assert Sieve().passes("x/Y.JPG")
    assert not Sieve().passes("x/y.txt")


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/bomb.png", bytes(5_000_000))
    ((name, member),) = zip_members(path, bool).items()
    with pytest.raises(ImageError, match=r"a/bomb\.png: 5000000 bytes are over the limit"):
        read_member(path, name, member, DecodeLimits(max_bytes=1_000_000))


def test_a_member_that_lies_about_its_size_inflates_no_further(tmp_path: Path) -> None:
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/liar.png", bytes(5_000_000))
    content = bytearray(path.read_bytes())
    central = content.rindex(b"PK\x01\x02")
    content[central + 24 : central + 28] = struct.pack("<L", 100)
    path.write_bytes(content)
    ((name, member),) = zip_members(path, bool).items()
    assert member.size == 100
    with pytest.raises(ImageError, match="size or checksum differ"):
        read_member(path, name, member, DecodeLimits(max_bytes=1_000_000))


def test_damage_is_named(write_zip: Callable[..., Path]) -> None:
    path = write_zip({"a": 2}, compression=zipfile.ZIP_STORED)
    (first, where), (second, at) = zip_members(path, bool).items()
    content = bytearray(path.read_bytes())
    content[where.offset + 60] ^= 0xFF
    content[at.offset] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a/000\.png: broken"):
        read_member(path, first, where, DecodeLimits())
    with pytest.raises(ImageError, match="has changed since"):
        read_member(path, second, at, DecodeLimits())
    path.write_bytes(content[: at.offset + 10])
    with pytest.raises(ImageError, match=r"a/001\.png: cannot be read"):
        read_member(path, second, at, DecodeLimits())


def test_unusable_archives_are_refused(tmp_path: Path, write_zip: Callable[..., Path]) -> None:
    text = tmp_path / "text.zip"
    text.write_text("no archive")
    with pytest.raises(InputError, match="cannot be read as a zip archive"):
        zip_members(text, bool)
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a/x.png", b"x")
    with pytest.raises(InputError, match="neither stored nor deflated"):
        zip_members(tmp_path / "lzma.zip", bool)
    path = write_zip({"a": 1})
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="encrypted"):
        zip_members(path, bool)
