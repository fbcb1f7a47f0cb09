"""The folders of data sets and caches."""

import os
from pathlib import Path

from models.cache_folder import cache_root

__all__ = ["cache_root", "data_root"]


def data_root() -> Path:
    """The folder of data sets: ``$KINDRED_DATA``, or ``data`` in the cache folder."""
    if named := os.environ.get("KINDRED_DATA"):
        return Path(named).expanduser()
    return cache_root() / "data"
