"""Metadata in the form that filters look at: flat, and each value under a name that says its kind.

How Milvus compares a number with a text inside JSON, or negates a condition on an absent field, differs
between its engines and versions. Beside the metadata itself each item therefore has *facets*, in which such
questions do not come up:

    {"price": 3, "new": true, "tags": ["a", 1], "shop": {"city": "B"}, "a b": 1}
    {"n:price": 3, "n:new": 1, "l:tags": ["ta", "n1"], "o:tags": 1, "o:shop": 1, "t:shop.city": "B",
     "n:a%000020b": 1}

`n:` holds numbers (true and false as 1 and 0), `t:` texts, `l:` the plain values of a list as texts with
their kind, `o:` says that there is a list or an object. What is absent or null has no facet. A character
that no plain name has is written as `%` and its number in six hexadecimal digits, so that dots stand between
names only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

NUMBER, TEXT, LIST, PRESENT = "n:", "t:", "l:", "o:"
_ODD = re.compile(r"[^\w-]")
_WRITTEN = re.compile(r"%([0-9a-f]{6})")


def facets_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Facets of plain JSON metadata."""
    facets: dict[str, Any] = {}
    waiting: list[tuple[str, Mapping[str, Any]]] = [("", metadata)]
    while waiting:
        prefix, fields = waiting.pop()
        for name, value in fields.items():
            path = prefix + facet_name([name])
            if isinstance(value, str):
                facets[TEXT + path] = value
            elif isinstance(value, int | float):
                facets[NUMBER + path] = plain_number(value)
            elif isinstance(value, list):
                facets[PRESENT + path] = 1
                plain = [entry for entry in value if isinstance(entry, str | int | float)]
                facets[LIST + path] = [listed(entry) for entry in plain]
            elif isinstance(value, dict):
                facets[PRESENT + path] = 1
                waiting.append((path + ".", value))
    return facets


def facet_name(names: Iterable[str]) -> str:
    """Nested names as one, without the kind."""
    return ".".join(_ODD.sub(lambda found: f"%{ord(found[0]):06x}", name) for name in names)


def names_in(facet: str) -> list[str]:
    """The inverse of `facet_name`."""
    return [_WRITTEN.sub(lambda found: chr(int(found[1], 16)), name) for name in facet.split(".")]


def listed(value: str | float) -> str:
    """A plain value of a list; equal values have equal texts."""
    return "t" + value if isinstance(value, str) else "n" + repr(plain_number(value))


def plain_number(value: float) -> int | float:
    """A number in the one form that equal numbers share: 1 for true, 3 for 3.0, floats beyond 64 bits."""
    fits = -(2**63) <= value < 2**63
    return int(value) if fits and value == int(value) else float(value)
