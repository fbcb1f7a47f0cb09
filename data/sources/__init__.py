"""Where images come from, one file for each kind of source."""

from collections.abc import Callable
from pathlib import Path

from data.sources.archive import ZipSource
from data.sources.folder import FolderSource
from data.sources.glyphs import GlyphSource
from data.sources.omniglot import OmniglotSource
from data.sources.source import Source
from models.errors import InputError

__all__ = ["FolderSource", "GlyphSource", "OmniglotSource", "Source", "ZipSource", "open_source"]

_NAMED: dict[str, Callable[[], Source]] = {
    "glyphs": GlyphSource,
    "omniglot": OmniglotSource,
}


def open_source(spec: str | Path | Source) -> Source:
    """The source that a text means.

    Args:
        spec: The name of a set ("glyphs", "omniglot"), a folder of class folders, or a ``.zip`` of
            them. A source is returned as it is.

    Raises:
        InputError: None of these.
    """
    if isinstance(spec, Source):
        return spec
    text = str(spec)
    if text in _NAMED:
        return _NAMED[text]()
    path = Path(text).expanduser()
    if path.suffix.lower() == ".zip":
        return ZipSource(path)
    if path.is_dir():
        return FolderSource(path)
    raise InputError(
        f"{text}: no such folder, and neither a .zip nor one of {', '.join(_NAMED)}; "
        "name your folder of images"
    )
