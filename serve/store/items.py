"""Code that all stores share: checks and normalization of items, search by example, grouping by label."""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar, Unpack

import msgspec
import numpy as np

from models.errors import first_line
from serve.store.types import (
    DEFAULT_K,
    DimensionMismatch,
    FingerprintMismatch,
    Hit,
    Item,
    ItemId,
    ItemMissing,
    QueryArguments,
    SearchQuery,
    SearchResult,
    Store,
    StoreError,
    StoreMissing,
    Vectors,
    is_unicode,
    several,
    whole_number,
)

C = TypeVar("C")

# What is an id, not a vector, among the examples of a search.
_ID = str | int | np.integer

# The longest text id that a path of the API takes.
MOST_ID_CHARACTERS = 1024
# More deeply nested metadata could be stored but not read back, because JSON parsers limit the depth. The
# size is Milvus's limit, so that every store takes the same items.
MOST_NESTED = 32
MOST_METADATA_BYTES = 65_536
# Between these bounds a float32 sum of squares neither underflows nor overflows.
_TINY, _HUGE = 1e-20, 1e30

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_log = logging.getLogger(__name__)
_metadata_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Definition:
    """Settings of a collection: the length of its vectors and the fingerprint of their model, if known."""

    dim: int
    fingerprint: str | None

    def check(self, dim: int | None, fingerprint: str | None) -> None:
        """Raises DimensionMismatch or FingerprintMismatch unless it is as expected; None expects nothing."""
        if dim is not None and dim != self.dim:
            raise DimensionMismatch(f"The collection takes vectors of {self.dim} numbers, not {dim}")
        self.check_fingerprint(fingerprint)

    def check_fingerprint(self, given: str | None) -> None:
        """Raises FingerprintMismatch if both sides name a model and the names differ."""
        if given is not None and self.fingerprint is not None and given != self.fingerprint:
            raise FingerprintMismatch(
                f"The collection holds vectors of model {self.fingerprint}, not of {given}; "
                "embed with that model or build a new collection"
            )


def unit_rows(vectors: Any, dim: int | None, what: str = "vector") -> Vectors:
    """Vectors as L2-normalized rows.

    Args:
        vectors: (dim,) or (n, dim) numbers, or a sequence of n such vectors.
        dim: Length that each must have; None takes any.
        what: Name of a vector in error messages.

    Returns:
        (n, dim) float32, C-contiguous.

    Raises:
        DimensionMismatch: A vector has another length.
        StoreError: One is zero, not finite or not numeric.
    """
    if isinstance(vectors, np.ndarray) and vectors.shape == (dim,) and vectors.dtype == np.float32:
        square = float(np.vdot(vectors, vectors))  # unlike other products it gives no warnings
        if _TINY < square < _HUGE:  # the common query, in a third of the time
            return np.divide(vectors, math.sqrt(square), dtype=np.float32)[np.newaxis]
    try:
        with np.errstate(over="ignore"):  # what is beyond float32 is refused below
            rows = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # torch raises RuntimeError
        _name_the_odd_one(vectors, dim, what)
        raise StoreError(
            f"A {what} is not a list of numbers ({first_line(error)}); give {dim or 'some'} numbers each"
        ) from None
    if rows.ndim == 1:
        rows = rows[np.newaxis]
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise StoreError(f"The {what}s have shape {rows.shape}; give one row of numbers each")
    if dim is not None and rows.shape[1] != dim:
        raise DimensionMismatch(f"A {what} has {rows.shape[1]} numbers, the collection takes {dim}")
    # In float64, squares of tiny or huge float32 numbers neither vanish nor overflow.
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    odd = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(odd):
        which = f"The {what} at position {odd[0]}" if len(rows) > 1 else f"The {what}"
        wrong = "is zero: no direction" if norms[odd[0]] == 0 else "holds NaN or an infinite number"
        raise StoreError(f"{which} {wrong}")
    return np.ascontiguousarray(rows / norms[:, np.newaxis], dtype=np.float32)


def _name_the_odd_one(vectors: Any, dim: int | None, what: str) -> None:
    """Raises the precise error if rows differ in length."""
    if not isinstance(vectors, Sequence):
        return
    for position, row in enumerate(vectors):
        length = len(row) if hasattr(row, "__len__") else None
        if dim is not None and length is not None and length != dim:
            raise DimensionMismatch(
                f"The {what} at position {position} has {length} numbers, the collection takes {dim}"
            )


@dataclass(frozen=True, slots=True)
class CheckedItems:
    """Checked items, each id once, ready to be written."""

    ids: list[ItemId]
    labels: list[str | None]
    metadata: list[str | None]
    thumbnails: list[bytes | None]
    vectors: Vectors


def check_id(value: Any) -> ItemId:
    """Returns the id if it is text or a 64-bit integer, else raises StoreError."""
    if isinstance(value, str):
        if value and "\0" not in value and is_unicode(value):
            return str(value)  # a plain one, where NumPy made it
    elif isinstance(value, int | np.integer) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return int(value)
    raise StoreError(f"{str(value)[:40]!r} is no id; use text without NUL, or a 64-bit integer")


def check_ids(values: Iterable[Any]) -> list[ItemId]:
    """Returns the ids of a list; StoreError if one is unusable, or the argument is no list."""
    return [check_id(value) for value in several(values)]


def check_limit(limit: int) -> int:
    """Returns the number of items to read, at least 1 (else StoreError), as far as SQLite counts."""
    limit = whole_number("limit", limit)
    if limit < 1:
        raise StoreError(f"limit is {limit}; ask for at least one item")
    return min(limit, 2**63 - 1)


def checked_in_chunks(items: Iterable[Item], size: int, check: Callable[[Sequence[Item]], C]) -> Iterator[C]:
    """Yields the results of `check` for `size` items at a time.

    Raises:
        StoreError: What `check` raises for one item, with its id and its `position` among all.
    """
    if not isinstance(items, Iterable):
        raise StoreError(f"upsert takes a list of items, not one {type(items).__name__}; put it into a list")
    supply, taken = iter(items), 0
    while chunk := list(itertools.islice(supply, size)):
        try:
            checked = check(chunk)
        except StoreError:
            for position, item in enumerate(chunk, taken):  # again one by one, to name the item
                try:
                    check([item])
                except StoreError as error:
                    name = getattr(item, "id", position)
                    named = type(error)(f"item {name!r:.42}: {error}")
                    named.position = position
                    raise named from None
            raise
        yield checked
        taken += len(chunk)


def check_items(items: Sequence[Item], dim: int) -> CheckedItems:
    """Checks items before any is written; of equal ids the last one stays."""
    strange = next((item for item in items if not isinstance(item, Item)), None)
    if strange is not None:
        raise StoreError(f"A {type(strange).__name__} is no Item; give Item(id, vector, label, metadata)")
    last: dict[ItemId, Item] = {}
    for item in reversed(items):
        last.setdefault(_check_new_id(item.id), item)
    ids, items = list(reversed(last)), list(reversed(last.values()))
    if any(item.vector is None for item in items):
        raise StoreError("An item has no vector; every item needs one")
    return CheckedItems(
        ids=ids,
        labels=[check_label(item.label) for item in items],
        metadata=[metadata_text(item.metadata) for item in items],
        thumbnails=[check_thumbnail(item.thumbnail) for item in items],
        vectors=unit_rows([item.vector for item in items], dim),
    )


def _check_new_id(value: Any) -> ItemId:
    item_id = check_id(value)
    if isinstance(item_id, str) and len(item_id) > MOST_ID_CHARACTERS:
        raise StoreError(f"The id has {len(item_id)} characters; use at most {MOST_ID_CHARACTERS}")
    return item_id


def is_name(text: str) -> bool:
    """Whether a text is a valid name of a collection or an alias."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str, what: str = "collection name") -> str:
    """Returns the name of a collection or an alias if it is usable, else raises StoreError."""
    if not isinstance(name, str) or not is_name(name):
        raise StoreError(f"{name!r} is no {what}; use up to 64 letters, digits, '_', '-' or '.'")
    return name


def check_alias(alias: str, name: str | None, collections: Sequence[str], place: object) -> None:
    """Checks that an alias is usable, and that there is the collection to which it shall point (if any)."""
    check_name(alias, "alias")
    if alias in collections:
        raise StoreError(f"{alias!r} is a collection; choose another name for the alias")
    if name is not None and name not in collections:
        raise StoreMissing(f"There is no collection {name!r} in {place}")


def check_removable(name: str, collections: Sequence[str], aliases: Mapping[str, str], place: object) -> None:
    """Checks that a collection exists, and that no alias points at it."""
    meant = sorted(alias for alias, target in aliases.items() if target == name)
    if meant:
        raise StoreError(f"The alias {meant[0]!r} means {name!r}; point it elsewhere first")
    if name not in collections:
        raise StoreMissing(f"There is no collection {name!r} in {place}")


def check_label(value: Any) -> str | None:
    """Returns the label if it is text or None."""
    if value is None or (isinstance(value, str) and "\0" not in value and is_unicode(value)):
        return value
    raise StoreError(f"The label {str(value)[:40]!r} is no text; use text without NUL, or none")


def check_thumbnail(value: Any) -> bytes | None:
    """Returns the thumbnail if it is bytes or None."""
    if value is None or isinstance(value, bytes):
        return value
    raise StoreError(f"A thumbnail is a {type(value).__name__}; give an encoded image's bytes")


def metadata_text(value: Mapping[str, Any] | None) -> str | None:
    """Metadata as JSON text, None if there is none. All stored metadata passes through here.

    Raises:
        StoreError: It is not plain JSON, too large, or nested too deeply.
    """
    if not value:
        return None
    if not isinstance(value, Mapping):
        raise StoreError("Metadata is an object with named fields, such as {'price': 3}")
    if _is_deep(value):
        raise StoreError(f"Metadata is nested more than {MOST_NESTED} deep; flatten it")
    try:
        text = _metadata_json(value)
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        raise StoreError(f"Metadata is not plain JSON: {error}; convert it to text or numbers") from None
    if size > MOST_METADATA_BYTES:
        raise StoreError(f"Metadata of {size:,} bytes; an item has at most {MOST_METADATA_BYTES:,}")
    return text


def metadata_of(text: str | None) -> dict[str, Any]:
    """Metadata from its JSON text; empty, with a warning in the log, if the text cannot be used.

    An earlier version could store such text; reading it must not fail the other items of a request.
    """
    if text is None:
        return {}
    try:
        value = msgspec.json.decode(text, type=dict[str, Any])
        # A text with few brackets cannot be deep, and counting them is quick.
        if text.count("{") + text.count("[") <= MOST_NESTED or not _is_deep(value):
            return value
        reason = f"nested more than {MOST_NESTED} deep"
    except (msgspec.DecodeError, RecursionError) as error:
        reason = str(error)
    _log.warning("metadata that begins with %.42r is shown empty: %s", text, reason)
    return {}


def check_patch(patch: Mapping[str, Any]) -> None:
    """Raises StoreError unless these are usable changes of label and metadata for `Store.update`."""
    unknown = set(patch) - {"label", "metadata"}
    if unknown:
        raise StoreError(f"Cannot change {sorted(unknown)[0]!r} of an item; change label or metadata")
    check_label(patch.get("label"))
    metadata_text(patch.get("metadata"))


def merged(target: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396) applied: null removes, objects merge, everything else replaces."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_NESTED):
        parts = itertools.chain.from_iterable(
            one.values() if isinstance(one, Mapping) else one for one in level
        )
        level = [part for part in parts if isinstance(part, Mapping | list | tuple)]
        if not level:
            return False
    return True


class BaseStore:
    """Methods that are the same for every engine."""

    _definition: Definition

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._definition.dim

    @property
    def fingerprint(self) -> str | None:
        """The model that made the vectors, if it was given."""
        return self._definition.fingerprint

    def close(self) -> None:
        """See `Store.close`."""
        raise NotImplementedError

    def search_examples(
        self: Store,
        positives: Sequence[ItemId | Vectors],
        negatives: Sequence[ItemId | Vectors] = (),
        query: SearchQuery | int = DEFAULT_K,
        **options: Unpack[QueryArguments],
    ) -> SearchResult:
        """Finds items like the positive and unlike the negative examples; see `Store.search_examples`."""
        query = SearchQuery.of(query, options)
        positives, negatives = several(positives), several(negatives)
        if len(positives) == 0:
            raise StoreError("There is no positive example; give at least one id or vector")
        vector = _example_vectors(self, positives).mean(axis=0)
        if len(negatives):
            vector = 2 * vector - _example_vectors(self, negatives).mean(axis=0)
        if not vector.any():
            raise StoreError("The examples cancel out; give others")
        named = [check_id(value) for value in (*positives, *negatives) if isinstance(value, _ID)]
        return self.search(vector, query, exclude=(*query.exclude, *named))


def _example_vectors(store: Store, examples: Sequence[ItemId | Vectors]) -> Vectors:
    ids = [check_id(value) for value in examples if isinstance(value, _ID)]
    found = dict(zip(ids, store.get(ids, with_vectors=True), strict=True))
    vectors = []
    for value in examples:
        if isinstance(value, _ID):
            item = found[check_id(value)]
            if item is None:
                raise ItemMissing(f"There is no item {value!r}")
            vectors.append(item.vector)
        else:
            vectors.append(value)
    return unit_rows(vectors, store.dim, "example")


def best_of_each_label(
    hits: list[Hit], query: SearchQuery, further: Callable[[list[str], list[ItemId]], list[Hit]]
) -> list[Hit]:
    """The best hit of each label, `k` in all; each item without a label is a group of its own.

    `hits` are the `k` best of one vector; `further` returns those outside the labels and ids found so far, so
    each round finds at least one new label. The best hit of a label in a round is the best of all, because
    earlier rounds found none of that label.
    """
    best: list[Hit] = []
    labels: set[str] = set()
    while True:
        for hit in hits:
            if hit.label is None or hit.label not in labels:
                best.append(hit)
            if hit.label is not None:
                labels.add(hit.label)
        if len(hits) < query.k or len(best) >= query.k:
            kept = best[: query.k]
            return kept if query.with_metadata else [Hit(hit.id, hit.similarity) for hit in kept]
        hits = further(sorted(labels), [hit.id for hit in best if hit.label is None])
