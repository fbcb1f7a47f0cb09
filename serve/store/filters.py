"""The filter language, and its translation to SQL with bound parameters.

A filter is a JSON object; an empty one passes everything. Its keys are fields or combinations:

    {"label": "cat"}                                equal
    {"label": {"in": ["cat", "dog"]}}               one of
    {"metadata.price": {"gte": 3, "lt": 9}}         range (numbers with numbers, text with text)
    {"metadata.tags": {"contains": "red"}}          a JSON array holds the value
    {"metadata.shop.city": {"exists": true}}        present and not null
    {"label": {"prefix": "ca"}}                     text that begins so
    {"id": {"ne": "a-17"}}                          not equal, or absent
    {"and": [F, G]}, {"or": [F, G]}, {"not": F}     combinations

Several keys in one object must all hold. Fields are `id`, `label` and `metadata.NAME`, with dots between
nested names. A name with other characters than letters, digits, `_` and `-` is put in double quotes:
`metadata."a.b"."my key"` (a name with a double quote, a backslash or a control character cannot be written).

Values are compared within their type: text with text and number with number; JSON true and false are 1 and 0.
Arrays and objects equal nothing and are in no range; `contains` looks only at the texts and numbers of an
array. Text with NUL passes no comparison, because SQLite reads it only up to the NUL.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from serve.store.types import FilterError, is_unicode

MOST_TERMS = 256
MOST_NESTED = 16
MOST_VALUES = 10_000
_PLAIN = re.compile(r"[\w-]+")
# SQLite compares a quoted name with the raw JSON text, in which the characters excluded here are escaped.
_NAME = re.compile(r'\.(?:([\w-]+)|"([^"\\\x00-\x1f\ud800-\udfff]+)")')
_FIELD = re.compile(f"metadata(?:{_NAME.pattern})+")

Scalar: TypeAlias = str | int | float


@dataclass(frozen=True, slots=True)
class Condition:
    """An SQL expression over the columns of `items`, and its parameters."""

    sql: str
    parameters: tuple[Scalar, ...] = ()


EVERYTHING = Condition("1")


def names_of(field: str) -> list[str]:
    """The nested names of a metadata field: `metadata.shop."my key"` has `shop` and `my key`."""
    if not _FIELD.fullmatch(field):
        raise FilterError(
            f'Unknown filter field {field!r:.40}; use id, label, metadata.NAME or metadata."ODD NAME"'
        )
    return [plain or odd for plain, odd in _NAME.findall(field.removeprefix("metadata"))]


def field_of(names: Iterable[str]) -> str:
    """The inverse of `names_of`, with quotes only where they are needed."""
    return ".".join(["metadata", *(name if _PLAIN.fullmatch(name) else f'"{name}"' for name in names)])


def column(field: str) -> str:
    """The SQL expression of a field; FilterError if it is none of the language.

    A metadata field's path is part of the SQL text, because SQLite uses an index on an expression only for
    the same text. The names hold no double quote, and single ones are doubled.
    """
    if field in ("id", "label"):
        return field
    return f"json_extract(metadata, {_path(field)})"


def _path(field: str) -> str:
    """SQLite's path of a metadata field, as an SQL literal."""
    path = ".".join(f'"{name}"' for name in names_of(field)).replace("'", "''")
    return f"'$.{path}'"


def _holds_no_nul(path: str) -> str:
    """With two paths, json_extract returns JSON, in which NUL is escaped and a backslash doubled."""
    return f"instr(replace(json_extract(metadata, {path}, {path}), '\\\\', ''), '\\u0000') = 0"


def canonical(field: str) -> str:
    """The canonical form of a field, whichever way it is quoted."""
    return field if field in ("id", "label") else field_of(names_of(field))


def after_prefix(prefix: str) -> str | None:
    """The least text above all that begin with `prefix`; None if there is none.

    Texts are ordered by code points, which is also the order of their UTF-8 bytes.
    """
    kept = prefix.rstrip("\U0010ffff")
    if not kept:
        return None
    number = ord(kept[-1]) + 1
    # The surrogates in between are not characters.
    return kept[:-1] + chr(0xE000 if number == 0xD800 else number)


def condition(where: Mapping[str, Any] | None) -> Condition:
    """Translates a filter; FilterError if it is not in the language, or too large."""
    if not where:
        if where is not None and not isinstance(where, Mapping):
            raise FilterError("A filter is a JSON object such as {'label': 'cat'}")
        return EVERYTHING
    translation = _SqlTranslation()
    return Condition(translation.both(where), tuple(translation.parameters))


class _SqlTranslation:
    """Walks one filter and collects the parameters in the order of their question marks."""

    def __init__(self) -> None:
        self.parameters: list[Scalar] = []
        self.terms = 0
        self.depth = 0

    def both(self, where: Any) -> str:
        if not isinstance(where, Mapping):
            raise FilterError(f"A filter is a JSON object such as {{'label': 'cat'}}, not {where!r:.40}")
        if self.depth == MOST_NESTED:
            raise FilterError(f"The filter is nested more than {MOST_NESTED} deep")
        self.depth += 1
        sql = " AND ".join(self.entry(key, value) for key, value in where.items()) or "1"
        self.depth -= 1
        return sql

    def entry(self, key: Any, value: Any) -> str:
        self.terms += 1
        if self.terms > MOST_TERMS:
            raise FilterError(f"The filter has more than {MOST_TERMS} terms")
        if not isinstance(key, str):
            raise FilterError(f"A filter's keys are text, not {key!r:.40}")
        if key in ("and", "or"):
            if not isinstance(value, list | tuple):
                raise FilterError(f"{key!r} takes a list of filters")
            joined = f" {key.upper()} ".join(f"({self.both(part)})" for part in value)
            return f"({joined})" if joined else ("1" if key == "and" else "0")
        if key == "not":
            # Not plain NOT: an absent field makes a comparison NULL, and `not` must then hold.
            return f"(({self.both(value)}) IS NOT TRUE)"
        field = column(key)
        if not isinstance(value, Mapping):
            value = {"eq": value}
        if not value:
            raise FilterError(f"The field {key!r} has no condition")
        for name in value:
            if name not in _OPERATORS:
                raise FilterError(f"Unknown filter operator {name!r}; use one of {', '.join(_OPERATORS)}")
        return " AND ".join(_OPERATORS[name](self, key, field, operand) for name, operand in value.items())

    def bind(self, key: str, value: Any) -> str:
        self.parameters.append(_scalar(key, value))
        return "?"

    def equal(self, key: str, field: str, operand: Any) -> str:
        if operand is None:
            return f"{field} IS NULL"
        return self.within_type(key, field, f"{field} = {self.bind(key, operand)}", operand)

    def within_type(self, key: str, field: str, sql: str, *operands: Any) -> str:
        """The comparison, restricted to real text where an operand is text.

        json_extract also returns arrays and objects as text, and cuts a text at NUL.
        """
        if key in ("id", "label") or not any(isinstance(operand, str) for operand in operands):
            return sql
        is_text = f"json_type(metadata, {_path(key)}) = 'text' AND {_holds_no_nul(_path(key))}"
        return f"({sql} AND (typeof({field}) <> 'text' OR {is_text}))"

    def unequal(self, key: str, field: str, operand: Any) -> str:
        return f"({self.equal(key, field, operand)}) IS NOT TRUE"

    def one_of(self, key: str, field: str, operand: Any) -> str:
        if not isinstance(operand, list | tuple):
            raise FilterError(f"'in' takes a list of values, not {operand!r:.40}")
        if len(operand) > MOST_VALUES:
            raise FilterError(f"'in' takes at most {MOST_VALUES} values")
        self.parameters.append(json.dumps([_scalar(key, value) for value in operand]))
        sql = f"{field} IN (SELECT value FROM json_each(?))"  # noqa: S608  (text from `column`)
        return self.within_type(key, field, sql, *operand)

    def exists(self, _key: str, field: str, operand: Any) -> str:
        if not isinstance(operand, bool):
            raise FilterError("'exists' takes true or false")
        return f"{field} IS {'NOT ' if operand else ''}NULL"

    def contains(self, key: str, _field: str, operand: Any) -> str:
        if key in ("id", "label"):
            raise FilterError(f"'contains' is for lists in metadata, not for {key!r}")
        sql = f"value = {self.bind(key, operand)}"
        if isinstance(operand, str):
            sql += f" AND type = 'text' AND {_holds_no_nul('fullkey')}"
        path = _path(key)
        holds = f"EXISTS (SELECT 1 FROM json_each(metadata, {path}) WHERE {sql})"  # noqa: S608
        return f"(json_type(metadata, {path}) = 'array' AND {holds})"

    def prefix(self, key: str, field: str, operand: Any) -> str:
        if not isinstance(operand, str):
            raise FilterError(f"'prefix' takes text, not {operand!r:.40}")
        sql = f"{field} >= {self.bind(key, operand)}"
        after = after_prefix(operand)
        if after is not None:
            sql += f" AND {field} < {self.bind(key, after)}"
        return self.within_type(key, field, f"({sql})", operand)


def _range(sign: str) -> Callable[[_SqlTranslation, str, str, Any], str]:
    """A comparison within one type: in SQL every number is below every text."""

    def write(translation: _SqlTranslation, key: str, field: str, operand: Any) -> str:
        sql = f"{field} {sign} {translation.bind(key, operand)}"
        if isinstance(operand, str):
            sql = sql if sign.startswith(">") else f"({sql} AND {field} >= '')"
            return translation.within_type(key, field, sql, operand)
        return f"({sql} AND {field} < '')" if sign.startswith(">") else sql

    return write


_OPERATORS: dict[str, Callable[[_SqlTranslation, str, str, Any], str]] = {
    "eq": _SqlTranslation.equal,
    "ne": _SqlTranslation.unequal,
    "in": _SqlTranslation.one_of,
    "gt": _range(">"),
    "gte": _range(">="),
    "lt": _range("<"),
    "lte": _range("<="),
    "exists": _SqlTranslation.exists,
    "contains": _SqlTranslation.contains,
    "prefix": _SqlTranslation.prefix,
}


def _scalar(key: str, value: Any) -> Scalar:
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, str | int | float):
        raise FilterError(f"The filter on {key!r} compares with {value!r:.40}; use text or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise FilterError(f"The filter on {key!r} compares with {value}; use a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise FilterError(f"The filter on {key!r} compares with an integer beyond 64 bits")
    if isinstance(value, str) and "\0" in value:
        raise FilterError(f"The filter on {key!r} compares with text that holds NUL; leave NUL out")
    if isinstance(value, str) and not is_unicode(value):
        raise FilterError(f"The filter on {key!r} holds text that is not valid Unicode")
    if key == "label" and not isinstance(value, str):
        raise FilterError(f"Labels are text; the filter compares with {value!r:.40}")
    return int(value) if isinstance(value, bool) else value
