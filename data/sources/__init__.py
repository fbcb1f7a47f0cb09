"""Sources of images."""

from collections.abc import Callable
from pathlib import Path

from data.sources.benchmarks import Cars196Source, CubSource, InShopSource, OnlineProductsSource
from data.sources.faces import IdentitySource, LfwSource
from data.sources.folder import FolderSource, ZipSource
from data.sources.glyphs import GlyphSource
from data.sources.listing import ListingSource
from data.sources.omniglot import OmniglotSource
from data.sources.source import Source
from models.errors import InputError

__all__ = [
    "Cars196Source",
    "CubSource",
    "FolderSource",
    "GlyphSource",
    "IdentitySource",
    "InShopSource",
    "LfwSource",
    "ListingSource",
    "OmniglotSource",
    "OnlineProductsSource",
    "Source",
    "ZipSource",
    "open_source",
]

_NAMED: dict[str, Callable[[], Source]] = {
    "cars196": Cars196Source,
    "cub": CubSource,
    "glyphs": GlyphSource,
    "inshop": InShopSource,
    "lfw": LfwSource,
    "omniglot": OmniglotSource,
    "sop": OnlineProductsSource,
}


def open_source(spec: str | Path | Source) -> Source:
    """The source for a name or path.

    Args:
        spec: The name of a set (cars196, cub, glyphs, inshop, lfw, omniglot, sop), a folder of class folders,
            a ``.zip`` of them, or a ``.csv``, ``.tsv`` or ``.parquet`` table. A source is returned unchanged.

    Raises:
        InputError: It is none of these.
    """
    if isinstance(spec, Source):
        return spec
    text = str(spec)
    if not text:  # as a path, it would be the current folder
        raise InputError("the source is empty: name your folder of images")
    if text in _NAMED:
        return _NAMED[text]()
    path = Path(text).expanduser()
    suffix = path.suffix.lower()
    if path.is_dir():
        return FolderSource(path)
    if suffix == ".zip":
        return ZipSource(path)
    if suffix in (".csv", ".tsv", ".parquet"):
        return ListingSource(path)
    raise InputError(
        f"{text}: no such folder, and neither a .zip, .csv, .tsv or .parquet file nor one of "
        f"{', '.join(_NAMED)}; name your folder of images"
    )
