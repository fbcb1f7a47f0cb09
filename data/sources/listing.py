"""A table of images: CSV or Parquet."""

import json
import logging
import unicodedata
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from numpy.typing import NDArray

from data.csv_file import as_flags, column_names, read_csv, with_type
from data.file_index import cached_table
from data.image_files import some, zip_members
from data.layout import member_columns, split_parts, table_from_columns
from data.sources.source import Source
from data.table import ImageTable
from models.errors import InputError

_log = logging.getLogger(__name__)

_NEEDED = ("path", "label")
_KNOWN = ("split", "is_query", "is_gallery")


class ListingSource(Source):
    """A CSV or Parquet file with the columns ``path`` and ``label``.

    Optional columns are ``split`` (train, val, test or empty), ``is_query`` and ``is_gallery`` (true or
    false); others are metadata. For the format of CSV files see :func:`data.csv_file.read_csv`.

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
    columns = _parquet(file) if file.suffix.lower() == ".parquet" else _csv(file)
    own = {name: columns.pop(name) for name in (*_NEEDED, *_KNOWN) if name in columns}
    for name in {*_NEEDED, "split"} & own.keys():
        own[name] = _texts(file, name, own[name])
    _check_given(file, own["path"], own["label"])
    own["path"] = _paths(own["path"], images)
    if "split" in own:
        own["split"] = split_parts(file, own["split"], "images")
        if own["split"].null_count == len(own["split"]):
            del own["split"]
    for flag in {"is_query", "is_gallery"} & own.keys():
        own[flag] = as_flags(file, flag, own[flag])
    rows = pa.array(_first_of_each(file, own))
    own, columns = ({name: values.take(rows) for name, values in kept.items()} for kept in (own, columns))
    names, labels = own.pop("path"), own.pop("label")
    if images.is_file():
        own |= _members(images, names)
    return table_from_columns(images, names, labels, columns, **own)


def _csv(file: Path) -> dict[str, pa.Array]:
    listed = read_csv(file, _NEEDED, _KNOWN)
    columns = {name: listed.column(name) for name in listed.column_names}
    # One array of Arrow's ordinary strings is limited to 2 GB.
    columns["path"] = columns["path"].cast(pa.large_string())
    arrays = {name: column.combine_chunks() for name, column in columns.items()}
    return {
        name: values if name in (*_NEEDED, *_KNOWN) else with_type(values) for name, values in arrays.items()
    }


def _parquet(file: Path) -> dict[str, pa.Array]:
    try:
        with pa.parquet.ParquetFile(file) as opened:
            listed = opened.read()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file}: cannot be read as a table ({' '.join(str(error).split())})") from error
    listed = listed.rename_columns(column_names(file, listed.column_names, (*_NEEDED, *_KNOWN)))
    if missing := [name for name in _NEEDED if name not in listed.column_names]:
        raise InputError(f"{file}: lacks the column {missing[0]!r}; it needs the columns path and label")
    columns = {}
    for name in listed.column_names:
        values = listed.column(name).combine_chunks()
        if name not in (*_NEEDED, *_KNOWN):
            values = _plain_values(values)
        if values is None:
            _log.warning("%s: column %s of bytes is left out", file, name)
        else:
            columns[name] = values
    return columns


def _plain_values(values: pa.Array) -> pa.Array | None:
    """The same values as JSON has them: strings, integers, finite floats, booleans, lists and structs.

    Decimals become floats, non-finite floats null, and times and mappings strings. Returns None for columns
    that contain bytes.
    """
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _plain_values(values.cast(kind.value_type))
    if _holds_bytes(kind):
        return None
    if pa.types.is_decimal(kind) or pa.types.is_floating(kind):
        values = values.cast(pa.float64())
        return pc.if_else(pc.is_finite(values), values, None)
    if _is_plain(kind):
        return values
    contents = json.loads(json.dumps(values.to_pylist(), default=str), parse_constant=lambda _: None)
    try:
        return pa.array(contents)
    except pa.ArrowException:  # values of several kinds
        return pa.array([None if content is None else json.dumps(content) for content in contents])


def _children(kind: pa.DataType) -> list[pa.DataType]:
    return [kind.field(number).type for number in range(kind.num_fields)]


def _holds_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    bytes_ = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    return any(test(kind) for test in bytes_) or any(map(_holds_bytes, _children(kind)))


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_struct(kind):
        return all(map(_is_plain, _children(kind)))
    scalars = (pa.types.is_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    return any(test(kind) for test in scalars)


def _texts(file: Path, name: str, values: pa.Array) -> pa.Array:
    """A column of names as strings without surrounding spaces; numbers become strings."""
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not (is_text or is_number or pa.types.is_null(kind)):
        raise InputError(f"{file}: column {name} holds {kind}; it must be text or numbers")
    if pa.types.is_floating(kind):
        values = values.cast(pa.float64())
        values = pc.if_else(pc.is_nan(values), None, values)
    return pc.utf8_trim_whitespace(values.cast(pa.large_string() if name == "path" else pa.string()))


def _check_given(file: Path, names: pa.Array, labels: pa.Array) -> None:
    empty = [
        pc.fill_null(pc.equal(values, ""), True).to_numpy(zero_copy_only=False) for values in (names, labels)
    ]
    lacking = np.flatnonzero(empty[0] | empty[1])
    if len(lacking):
        numbers = ", ".join(map(str, lacking[:10] + 1))
        raise InputError(
            f"{file}: {len(lacking)} rows lack a path or a label (row {numbers}; row 1 is the first "
            "below the header); complete or remove them"
        )
    if pc.any(pc.match_substring(names, "\0")).as_py():
        raise InputError(f"{file}: a path holds a NUL character; is the file a table of texts?")


def _paths(names: pa.Array, images: Path) -> pa.Array:
    """Paths without empty and "." components; backslashes become "/" unless such a file exists.

    Letters with accents are spelled as the files' names are: a file system may keep them composed (NFC) or
    decomposed (NFD, macOS), a table the other way.
    """
    odd = pc.match_substring_regex(names, r"\\|//|(^|/)\.(/|$)|/$")
    tidy = []
    for name in names.filter(odd).to_pylist():
        meant = name if "\\" in name and _exists(images / name) else name.replace("\\", "/")
        tidy.append(PurePosixPath(meant).as_posix())
    names = pc.replace_with_mask(names, odd, pa.array(tidy, names.type)) if tidy else names
    accented = pc.invert(pc.string_is_ascii(names))
    listed = names.filter(accented)
    # The first path stands for all, so that a table of many images in a slow place is read fast.
    if images.is_file() or not len(listed) or _exists(images / listed[0].as_py()):
        return names
    spelled = [_as_spelled(name, images) for name in listed.to_pylist()]
    return pc.replace_with_mask(names, accented, pa.array(spelled, names.type))


def _as_spelled(name: str, images: Path) -> str:
    forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return next((form for form in forms if _exists(images / form)), name)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long
        return False


def _first_of_each(file: Path, own: dict[str, pa.Array]) -> NDArray[np.int64]:
    """The first row of each path, int64.

    Raises:
        InputError: Rows of the same image contradict each other.
    """
    paths = own["path"].dictionary_encode()
    codes = np.asarray(paths.indices)
    first = np.unique(codes, return_index=True)[1]  # codes ascend in the order of first occurrence
    again = np.setdiff1d(np.arange(len(codes)), first, assume_unique=True)
    if not len(again):
        return first
    for name, values in own.items():
        texts = pc.fill_null(values.cast(pa.large_string()), "")
        here, there = texts.take(pa.array(again)), texts.take(pa.array(first[codes[again]]))
        if different := pc.index(pc.equal(here, there), False).as_py() + 1:
            row = int(again[different - 1])
            raise InputError(
                f"{file}: {own['path'][row]} is listed with {name} {there[different - 1]} and "
                f"{here[different - 1]}; give each image one row"
            )
    _log.warning(
        "%s: %d paths are listed more than once and count once: %s",
        file,
        len(np.unique(codes[again])),
        some(paths.dictionary[int(code)].as_py() for code in np.unique(codes[again])),
    )
    return first


def _members(archive: Path, names: pa.Array) -> dict[str, pa.Array]:
    def composed(name: str) -> str:
        return unicodedata.normalize("NFC", name)

    listed = [composed(name) for name in names.to_pylist()]
    wanted = set(listed)
    found = zip_members(archive, lambda name: composed(name) in wanted)
    members = {composed(name): member for name, member in found.items()}
    if missing := [name for name in listed if name not in members]:
        raise InputError(f"{archive}: lacks {len(missing)} listed images, {missing[0]!r} first")
    return member_columns([members[name] for name in listed], np.arange(len(listed)))
