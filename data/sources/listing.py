"""A table of images: CSV or Parquet."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from data.files import zip_members
from data.index import cached_table
from data.layout import member_columns, table_from_columns
from data.sources.source import Source
from data.table import ImageTable
from models.errors import InputError


class ListingSource(Source):
    """A CSV or Parquet file with the columns ``path`` and ``label``.

    Optional columns are ``split`` (train, val, test or empty), ``is_query`` and ``is_gallery`` (true or
    false); any other is metadata.

    Args:
        path: The file.
        images: Folder or zip archive that the paths are relative to; by default the file's own folder.
    """

    def __init__(self, path: str | Path, images: str | Path | None = None) -> None:
        self.path = Path(path).expanduser()
        self.images = Path(images).expanduser() if images is not None else self.path.parent

    def table(self) -> ImageTable:
        """See :meth:`Source.table`."""
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such file; name a CSV or Parquet table of path and label")
        watched = [self.path, *([self.images] if self.images.is_file() else [])]
        paths = [self.path, self.images]
        return cached_table("listing", paths, lambda: (_read(self.path, self.images), watched))


def _read(file: Path, images: Path) -> ImageTable:
    try:
        if file.suffix.lower() == ".parquet":
            listed = pa.parquet.read_table(file)
        else:
            # Labels such as 0042 are names, not numbers.
            options = pa.csv.ConvertOptions(column_types={"label": pa.string()})
            listed = pa.csv.read_csv(file, convert_options=options)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{file}: cannot be read as a table ({error})") from error
    if missing := {"path", "label"} - set(listed.column_names):
        raise InputError(f"{file}: lacks the column {min(missing)!r}; it needs path and label")
    columns = {name: listed.column(name).combine_chunks() for name in listed.column_names}
    names, labels = columns.pop("path").cast(pa.large_string()), columns.pop("label").cast(pa.string())
    if lacking := names.null_count + labels.null_count:
        raise InputError(f"{file}: {lacking} rows lack a path or a label; complete or remove them")
    if "split" in columns:
        columns["split"] = _checked_split(file, columns["split"])
    for flag in {"is_query", "is_gallery"} & columns.keys():
        columns[flag] = _flag(file, flag, columns[flag])
    if images.is_file():
        columns |= _members(images, names)
    return table_from_columns(images, names, labels, **columns)


def _checked_split(file: Path, values: pa.Array) -> pa.Array:
    texts = values.cast(pa.string())
    texts = pc.if_else(pc.equal(texts, ""), None, texts)
    if unknown := {value for value in pc.unique(texts).to_pylist() if value} - {"train", "val", "test"}:
        raise InputError(f"{file}: split {min(unknown)!r} is none of train, val, test")
    return texts


def _flag(file: Path, name: str, values: pa.Array) -> pa.Array:
    try:
        return values.cast(pa.bool_())
    except pa.ArrowInvalid as error:
        raise InputError(f"{file}: column {name} must be true or false ({error})") from error


def _members(archive: Path, names: pa.Array) -> dict[str, pa.Array]:
    members = dict(zip_members(archive))
    listed = names.to_pylist()
    if missing := [name for name in listed if name not in members]:
        raise InputError(f"{archive}: lacks {len(missing)} listed images, {missing[0]!r} first")
    return member_columns([members[name] for name in listed], np.arange(len(listed)))
