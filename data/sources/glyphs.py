"""The drawn set as a source: drawn once into the cache folder, then read like any other archive."""

import hashlib
import json
from pathlib import Path

from data.locations import cache_root
from data.sources.archive import ZipSource
from data.sources.source import Source
from data.table import ImageTable

# Raise when the drawing changes, so that sets drawn before are drawn anew.
_FORMAT = 2


class GlyphSource(Source):
    """Pictures of characters; the characters of the test set are not among those for training.

    Args:
        train_classes: Characters for training (and validation).
        test_classes: Characters for testing.
        images_per_class: Pictures of each.
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
        self.train_classes, self.test_classes = train_classes, test_classes
        self.images_per_class, self.size, self.seed = images_per_class, size, seed

    @property
    def archive(self) -> Path:
        """Where the pictures lie, or will lie."""
        settings = [
            _FORMAT, self.train_classes, self.test_classes, self.images_per_class, self.size, self.seed,
        ]  # fmt: skip
        key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
        return cache_root() / "glyphs" / key / "glyphs.zip"

    def table(self) -> ImageTable:
        """See :meth:`Source.table`."""
        if not self.archive.is_file():
            from data.glyphs.draw_archive import draw_archive  # and with it matplotlib and SciPy

            draw_archive(
                self.archive,
                self.train_classes,
                self.test_classes,
                self.images_per_class,
                self.size,
                self.seed,
            )
        return ZipSource(self.archive).table()
