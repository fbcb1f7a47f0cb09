"""Filters as Milvus expressions.

An expression is text, and only this module quotes values. Engines of Milvus differ in what NOT makes of a
condition on an absent field. A translation therefore pushes every `not` down to the single conditions, whose
negations test for absence explicitly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from serve.store import filters
from serve.store.milvus.capabilities import Capabilities
from serve.store.milvus.schema import LIST, NUMBER, PRESENT, TEXT, facet_name, key_of, listed, plain_number
from serve.store.types import ItemId

ALWAYS = "sequence >= 0"
NEVER = "sequence < 0"
HAS_LABEL = 'label > ""'
NO_LABEL = 'label == ""'
_SIGNS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def expression(where: Mapping[str, Any] | None, engine: Capabilities) -> str:
    """Translates a filter (see `filters.condition`) for an engine; empty text passes everything."""
    filters.condition(where)  # raises for everything that is wrong with it
    return _MilvusTranslation(engine).both(where, True) if where else ""


def all_of(*conditions: str) -> str:
    """The conditions that are not empty, joined: all must hold."""
    return " and ".join(f"({condition})" for condition in conditions if condition)


def keys_in(ids: Iterable[ItemId], *, negate: bool = False) -> str:
    """The condition that an item is (not) one of these; empty if there are no ids and `negate` is true."""
    return _listed("id", map(key_of, ids), negate)


def labels_in(labels: Iterable[str], *, negate: bool = False) -> str:
    """The condition that an item has one (or none) of these labels; empty for no labels and `negate`."""
    return _listed("label", ("s" + label for label in labels), negate)


def _listed(field: str, texts: Iterable[str], negate: bool) -> str:
    literals = ", ".join(map(quoted, texts))
    if not literals:
        return "" if negate else NEVER
    return f"{field} {'not in' if negate else 'in'} [{literals}]"


def quoted(text: str) -> str:
    """A text as a literal."""
    return f'"{text.translate(_ESCAPES)}"'


def _literal(value: str | float) -> str:
    if isinstance(value, str):
        return quoted(value)
    # The parsers read the sign separately, and 2⁶³ alone fits no integer.
    return repr(float(value)) if value == -(2**63) else repr(value)


class _MilvusTranslation:
    """Walks a filter that `filters.condition` accepted; `hold` is false below an odd number of `not`."""

    def __init__(self, engine: Capabilities) -> None:
        self._engine = engine

    def both(self, where: Mapping[str, Any], hold: bool) -> str:
        return _joined([self._entry(key, value, hold) for key, value in where.items()], conjunction=hold)

    def _entry(self, key: str, value: Any, hold: bool) -> str:
        if key in ("and", "or"):
            return _joined([self.both(part, hold) for part in value], conjunction=(key == "and") == hold)
        if key == "not":
            return self.both(value, not hold)
        conditions = value if isinstance(value, Mapping) else {"eq": value}
        parts = [self._condition(key, name, operand, hold) for name, operand in conditions.items()]
        return _joined(parts, conjunction=hold)

    def _condition(self, field: str, name: str, operand: Any, hold: bool) -> str:
        if name == "ne":
            return self._condition(field, "eq", operand, not hold)
        if name == "exists" or (name == "eq" and operand is None):
            return _present(field, hold == (operand is True))
        if name == "in":
            return self._one_of(field, [_plain(value) for value in operand], hold)
        if name == "eq":
            return self._one_of(field, [_plain(operand)], hold)
        if name == "contains":
            return self._contains(_facet_name(field), _plain(operand), hold)
        if name == "prefix":
            # Not `like`: engines differ in how they escape its wildcards.
            bounds = ((">=", operand), ("<", filters.after_prefix(operand)))
            parts = [self._range(field, sign, bound, hold) for sign, bound in bounds if bound is not None]
            return _joined(parts, conjunction=hold)
        return self._range(field, _SIGNS[name], _plain(operand), hold)

    def _one_of(self, field: str, values: list[str | int | float], hold: bool) -> str:
        if field == "id":
            ids: list[ItemId] = [value for value in values if isinstance(value, str | int)]
            return keys_in(ids, negate=not hold) or ALWAYS
        if field == "label":
            labels = [str(value) for value in values]
            return labels_in(labels, negate=not hold) or ALWAYS
        name = _facet_name(field)
        # Separately, because some versions do not compare a list of both integers and floats.
        kinds = (
            (TEXT, [value for value in values if isinstance(value, str)]),
            (NUMBER, [value for value in values if isinstance(value, int)]),
            (NUMBER, [value for value in values if isinstance(value, float)]),
        )
        parts = [self._facet_in(kind + name, alike, hold) for kind, alike in kinds if alike]
        return _joined(parts, conjunction=not hold)

    def _facet_in(self, facet: str, values: list[Any], hold: bool) -> str:
        path = _path(facet)
        if len(values) > 1 and self._engine.lists_in_json:
            condition = f"{path} in [{', '.join(map(_literal, values))}]"
        else:
            condition = " or ".join(f"{path} == {_literal(value)}" for value in values)
        return _leaf(condition, f"not (exists {path})", hold)

    def _contains(self, name: str, value: str | int | float, hold: bool) -> str:
        path = _path(LIST + name)
        inside = f"json_contains({path}, {quoted(listed(value))})"
        return _leaf(inside, f"not (exists {_path(PRESENT + name)})", hold)

    def _range(self, field: str, sign: str, bound: str | int | float, hold: bool) -> str:
        if field in ("id", "label"):
            condition = (
                _text_range(field, sign, bound) if isinstance(bound, str) else _integer_ids(sign, bound)
            )
            return condition if hold else f"not ({condition})"
        path = _path((TEXT if isinstance(bound, str) else NUMBER) + _facet_name(field))
        return _leaf(f"{path} {sign} {_literal(bound)}", f"not (exists {path})", hold)


def _joined(parts: list[str], *, conjunction: bool) -> str:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return ALWAYS if conjunction else NEVER
    return (" and " if conjunction else " or ").join(f"({part})" for part in parts)


def _leaf(condition: str, absent: str, hold: bool) -> str:
    return condition if hold else f"({absent}) or (not ({condition}))"


def _facet_name(field: str) -> str:
    return facet_name(filters.names_of(field))


def _path(facet: str) -> str:
    return f"facets[{quoted(facet)}]"


def _present(field: str, hold: bool) -> str:
    if field == "id":
        return ALWAYS if hold else NEVER
    if field == "label":
        return HAS_LABEL if hold else NO_LABEL
    name = _facet_name(field)
    parts = [f"exists {_path(kind + name)}" for kind in (NUMBER, TEXT, PRESENT)]
    return _joined([part if hold else f"not ({part})" for part in parts], conjunction=not hold)


def _plain(value: Any) -> str | int | float:
    return value if isinstance(value, str) else plain_number(value)


def _text_range(field: str, sign: str, bound: str) -> str:
    # Stored texts begin with "s"; keys of integers and the empty text of an absent label sort below.
    condition = f"{field} {sign} {quoted('s' + bound)}"
    return condition if sign.startswith(">") else f'{condition} and {field} >= "s"'


def _integer_ids(sign: str, bound: float) -> str:
    above = sign.startswith(">")
    edge = {
        ">": math.floor(bound) + 1,
        ">=": math.ceil(bound),
        "<": math.ceil(bound) - 1,
        "<=": math.floor(bound),
    }[sign]
    lowest, highest = -(2**63), 2**63 - 1
    if edge > highest if above else edge < lowest:
        return NEVER
    key = quoted(key_of(min(max(edge, lowest), highest)))
    return f'id >= {key} and id < "s"' if above else f"id <= {key}"
