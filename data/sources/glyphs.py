"""The glyph set: drawn once into the cache folder, then read like any other archive."""

import hashlib
import json
from pathlib import Path

from data.sources.folder import ZipSource
from data.sources.source import Source
from data.table import ImageTable
from models.cache_folder import cache_root

# Increase when the drawing changes, so that older sets are redrawn.
_FORMAT = 2


class GlyphSource(Source):
    """Pictures of characters, with different characters for training and testing.

    Args:
        train_classes: Number of characters for training and validation.
        test_classes: Number of characters for testing.
        images_per_class: Number of pictures of each.
        size: Side of a picture in pixels.
        seed: Of the choice of characters and of every picture.
    """

    def __init__(
        self,
        train_classes: int = 600,
        test_classes: int = 200,
        images_per_class: int = 24,
        size: int = 40,
        seed: int = 0,
    ) -> None:
        self._settings = (train_classes, test_classes, images_per_class, size, seed)

    @property
    def archive(self) -> Path:
        """Path of the archive, which may not exist yet."""
        key = hashlib.sha256(json.dumps([_FORMAT, *self._settings]).encode()).hexdigest()[:12]
        return cache_root() / "glyphs" / key / "glyphs.zip"

    def table(self) -> ImageTable:
        """See :meth:`Source.table`."""
        if not self.archive.is_file():
            from data.glyphs.draw_archive import draw_archive  # imports matplotlib and SciPy

            draw_archive(self.archive, *self._settings)
        return ZipSource(self.archive).table()
