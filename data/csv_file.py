"""Reading CSV files with any common separator, encoding and spelling of the header."""

import csv
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.compute as pc

from models.errors import InputError

_log = logging.getLogger(__name__)

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_ROWS_AT_ONCE = 1 << 12

# Texts with leading zeros or plus signs (0042, +49…) are names, not numbers.
_INTEGER = r"^-?(0|[1-9][0-9]*)$"
_NUMBER = r"^-?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$"
_NO_NUMBER = ["", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null"]


def read_csv(file: Path, needed: Sequence[str], known: Sequence[str] = ()) -> pa.Table:
    """Read every column of a CSV file as strings; empty rows are skipped.

    The encoding is UTF-8, or UTF-16 with a byte order mark. The separator is that of a first line ``sep=;``
    (Excel's), else the first of comma, semicolon, tab and ``|`` with which the header has the needed columns.

    Args:
        file: The file.
        needed: Required columns; letter case and spaces around a name do not matter.
        known: Optional columns that are recognized likewise. See :func:`column_names`.

    Returns:
        A table of string columns.

    Raises:
        InputError: The file is unreadable, a needed column is missing, a needed or known one is duplicate, or
            a row has another number of fields than the header.
    """
    try:
        with file.open("rb") as start:
            encoding = "utf-16" if start.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        with file.open(encoding=encoding, newline="") as lines:
            separator, header = _header(file, lines, needed)
            names = column_names(file, header, [*needed, *known])
            schema = pa.schema([(name, pa.string()) for name in names])
            return pa.Table.from_batches(_batches(file, lines, separator, schema), schema)
    except OSError as error:
        raise InputError(f"{file}: cannot be read as a table ({error.strerror or error})") from error
    except UnicodeError as error:
        raise InputError(f"{file}: is not UTF-8 ({error}); save it as CSV UTF-8") from error
    except csv.Error as error:
        raise InputError(f"{file}: cannot be read as a table ({error})") from error


def _header(file: Path, lines: TextIO, needed: Sequence[str]) -> tuple[str, list[str]]:
    """The separator and the fields of the header line."""
    line = next((line for line in lines if line.strip()), "")
    candidates = list(_SEPARATORS)
    if said := re.fullmatch(r'"?sep=(.)"?[\r\n]*', line, re.IGNORECASE):
        candidates, line = [said[1]], next(lines, "")
    headers: list[list[str]] = []
    for separator in candidates:
        try:
            headers.append(next(_rows([line], separator), []))
        except csv.Error:  # quotes that are valid only with another separator
            continue
        if {name.lower() for name in needed} <= {name.strip().lower() for name in headers[-1]}:
            if separator != ",":
                _log.info("%s: its fields are separated by %s", file, _SEPARATORS.get(separator, separator))
            return separator, headers[-1]
    present = {name.strip().lower() for name in headers[0]} if headers else set()
    missing = next((name for name in needed if name.lower() not in present), needed[0])
    listed = " and ".join(filter(None, [", ".join(needed[:-1]), needed[-1]]))
    raise InputError(f"{file}: lacks the column {missing!r}; it needs the columns {listed}")


def _rows(lines: Iterator[str] | list[str] | TextIO, separator: str) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)


def _batches(file: Path, lines: TextIO, separator: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    held: list[list[str]] = []
    number, width = 0, len(schema)
    for row in _rows(lines, separator):
        if not any(map(str.strip, row)):
            continue
        number += 1
        if len(row) != width and (len(row) < width or any(row[width:])):
            raise InputError(
                f"{file}: cannot be read as a table (row {number} has {len(row)} fields instead of {width})"
            )
        held.append(row[:width])
        if len(held) == _ROWS_AT_ONCE:
            yield _batch(held, schema)
            held = []
    if held:
        yield _batch(held, schema)


def _batch(rows: list[list[str]], schema: pa.Schema) -> pa.RecordBatch:
    columns = [pa.array(values, pa.string()) for values in zip(*rows, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def column_names(file: Path, header: Sequence[str], known: Sequence[str]) -> list[str]:
    """Distinct names of a table's columns.

    Known names are recognized regardless of letter case and surrounding spaces; an exact spelling takes
    precedence. Other duplicates get a number (``x``, ``x.1``) and empty names their position (``Unnamed:
    0``), as in pandas.

    Raises:
        InputError: A known name is duplicate.
    """
    header = [name.strip() for name in header]
    meant: dict[int, str] = {}
    for word in known:
        alike = [n for n, name in enumerate(header) if name == word]
        alike = alike or [n for n, name in enumerate(header) if name.lower() == word.lower()]
        if len(alike) > 1:
            raise InputError(f"{file}: has {len(alike)} columns {word!r}; keep one of them")
        meant |= dict.fromkeys(alike, word)
    taken = {*header, *meant.values()}
    names: list[str] = []
    for position, name in enumerate(header):
        plain = new = meant.get(position, name or f"Unnamed: {position}")
        number = 0
        while new in names or (number and new in taken):
            number += 1
            new = f"{plain}.{number}"
        names.append(new)
    return names


def with_type(texts: pa.Array) -> pa.Array:
    """Strings as int64, float64 or bool where all of them are such values (empty ones become null).

    A column with a leading zero (0042), a plus sign or an integer beyond 64 bits (a long article number)
    stays text, since these are names.
    """
    trimmed = pc.utf8_trim_whitespace(texts)
    empty = pc.is_in(trimmed, value_set=pa.array(_NO_NUMBER))
    values = pc.if_else(empty, pa.scalar(None, pa.string()), trimmed)
    given = values.drop_null()
    if not len(given):
        return texts
    if pc.all(pc.is_in(pc.utf8_lower(given), value_set=pa.array(["true", "false"]))).as_py():
        return values.cast(pa.bool_())
    if not pc.all(pc.match_substring_regex(given, _NUMBER)).as_py():
        return texts
    integers = pc.match_substring_regex(given, _INTEGER)
    try:
        given.filter(integers).cast(pa.int64())
    except pa.ArrowInvalid:
        return texts
    numbers = values.cast(pa.int64() if pc.all(integers).as_py() else pa.float64())
    return numbers if pc.all(pc.is_finite(numbers.drop_null())).as_py() else texts


def as_flags(file: Path, name: str, values: pa.Array, *, complete: bool = False) -> pa.Array:
    """A column of true and false (or 1 and 0) as bool; empty values become null.

    Raises:
        InputError: There is another value, or an empty one although the column must be ``complete``.
    """
    try:
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            values = pc.utf8_trim_whitespace(values)
            values = pc.if_else(pc.equal(values, ""), pa.scalar(None, values.type), values)
        flags = values.cast(pa.bool_())
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: column {name} must be true or false ({reason})") from error
    if complete and flags.null_count:
        raise InputError(f"{file}: column {name} is empty in {flags.null_count} rows; say true or false")
    return flags
