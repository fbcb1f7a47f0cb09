"""A cache of decoded and resized images, so that each file is decoded once."""

import hashlib
import json
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data.table import ImageTable
from models.cache_folder import cache_root
from models.preprocess import Preprocess

CacheKind = Literal["none", "memory", "disk"]

# Increase when decoding gives other pixels: a cache on disk may be older than the program.
_DECODING = 2
_PIXEL_SETTINGS = ("size", "mode", "resize_mode", "interpolation", "white_level")


class PixelCache:
    """uint8 pixels of up to ``max_bytes``, shared by all workers through one memory-mapped file.

    The first items that fit have slots; the others are decoded every time. A slot's flag is set after its
    pixels are written, so that readers see complete images; workers that fill the same slot write the same
    bytes.

    Args:
        path: The file; created where it is missing.
        items: Number of items.
        shape: Of one image: (channels, height, width).
        max_bytes: Maximum size of the file.
        temporary: Whether to delete the file with this object.
    """

    def __init__(
        self,
        path: Path,
        items: int,
        shape: tuple[int, int, int],
        max_bytes: int,
        *,
        temporary: bool = False,
    ) -> None:
        each = int(np.prod(shape)) + 1
        self.path, self.shape, self.slots = path, shape, min(items, max_bytes // each)
        self._open()
        if temporary:
            weakref.finalize(self, path.unlink, missing_ok=True)

    def _open(self) -> None:
        size = self.slots * (int(np.prod(self.shape)) + 1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.is_file() or self.path.stat().st_size != size:
            with self.path.open("wb") as file:
                file.truncate(size)  # a sparse file: images take space as they are added
        if not self.slots:
            return
        self._flags = np.memmap(self.path, np.uint8, "r+", 0, (self.slots,))
        self._pixels = np.memmap(self.path, np.uint8, "r+", self.slots, (self.slots, *self.shape))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "shape": self.shape, "slots": self.slots}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def get(self, item: int) -> NDArray[np.uint8] | None:
        """The pixels of an item, uint8 of the image's shape, or None where they are not cached."""
        if item >= self.slots or not self._flags[item]:
            return None
        return np.array(self._pixels[item])

    def put(self, item: int, pixels: NDArray[np.uint8]) -> None:
        """Cache the pixels of an item, if it has a slot."""
        if item < self.slots:
            self._pixels[item] = pixels
            self._flags[item] = 1

    @property
    def filled(self) -> int:
        """Number of cached images."""
        return int(np.count_nonzero(self._flags)) if self.slots else 0


def open_cache(
    kind: CacheKind, table: ImageTable, rows: NDArray[np.int64], preprocess: Preprocess, max_bytes: int
) -> PixelCache | None:
    """A cache of the pixels of some rows of a table; None for the kind "none" and where there are no rows.

    "memory" is a temporary file, which the system keeps in memory where possible and which is deleted after
    the run; "disk" is a file in the cache folder, for later runs too.
    """
    items, shape = len(rows), preprocess.shape
    if kind == "none" or not items:
        return None
    if kind == "disk":
        path = cache_root() / "pixels" / f"{_cache_key(table, rows, preprocess)}.u8"
        return PixelCache(path, items, shape, max_bytes)
    handle, name = tempfile.mkstemp(
        prefix="kindred-pixels-", suffix=".u8", dir=_memory_folder(items, shape, max_bytes)
    )
    os.close(handle)
    return PixelCache(Path(name), items, shape, max_bytes, temporary=True)


def _memory_folder(items: int, shape: tuple[int, int, int], max_bytes: int) -> str | None:
    """Linux's memory file system if it has space (containers often give it 64 MB), else the default."""
    shared = Path("/dev/shm")  # noqa: S108 - the file in it is made by mkstemp
    if not shared.is_dir() or not os.access(shared, os.W_OK):
        return None
    status = os.statvfs(shared)
    needed = min(items * (int(np.prod(shape)) + 1), max_bytes)
    return str(shared) if status.f_bavail * status.f_frsize > 2 * needed else None


def _cache_key(table: ImageTable, rows: NDArray[np.int64], preprocess: Preprocess) -> str:
    """A hash of what decoded pixels on disk depend on: the images, their order, the preprocessing."""
    digest = hashlib.sha256(table.fingerprint.encode())
    digest.update(np.ascontiguousarray(rows).tobytes())
    settings = preprocess.to_dict()
    used = {key: settings[key] for key in _PIXEL_SETTINGS if key in settings}
    digest.update(json.dumps([_DECODING, used]).encode())
    return digest.hexdigest()[:32]
