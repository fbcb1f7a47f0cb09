"""Thumbnails as data URIs, so that the report needs no other file."""

import base64
import io
from functools import lru_cache

from PIL import Image

from app.evaluation.evaluation_set import EvaluationSet
from models.preprocess import ImageError, decode_image

SIDE = 64


class Thumbnails:
    """Thumbnails of the evaluated images by row."""

    def __init__(self, items: EvaluationSet) -> None:
        self._items = items
        self.get = lru_cache(maxsize=None)(self._make)

    def _make(self, row: int) -> str | None:
        """A JPEG of at most 64 pixels a side as `data:` URI; None without a readable image."""
        table, white_level = self._items.table, self._items.white_level
        if table is None:
            return None
        try:
            image = decode_image(table.read(row), "RGB", table.limits, at_least=SIDE, white_level=white_level)
        except ImageError:
            return None
        image.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
