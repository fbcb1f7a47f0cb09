"""The cache folder."""

import os
import sys
from pathlib import Path


def cache_root() -> Path:
    """The folder for files that can be recreated: ``$KINDRED_CACHE``, or ``kindred`` in the user's cache."""
    if named := os.environ.get("KINDRED_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "kindred"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "kindred"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kindred"
