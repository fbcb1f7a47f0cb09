"""Metadata comes back as it went in or is refused, and what an earlier version left harms no other item."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.items import MOST_METADATA_BYTES, MOST_NESTED, merged
from serve.store.types import Item, StoreError

TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
ANY = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)
WRAPS = st.lists(st.sampled_from(["list", "object"]), max_size=60) | st.just(["object"] * 986)


def wrapped(value: Any, wraps: list[str]) -> Any:
    for wrap in wraps:
        value = [value] if wrap == "list" else {"x": value}
    return value


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(TEXT, ANY, max_size=3), value=ANY, wraps=WRAPS, edit=st.booleans())
def test_metadata_is_refused_or_comes_back_equal(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any], value: Any, wraps: list[str], edit: bool
) -> None:
    metadata = {**fields, "deep": wrapped(value, wraps)}
    tuning = Tuning(memtable_rows=1, build_threads=1)
    with FaissStore.open(tmp_path_factory.mktemp("store"), dim=2, tuning=tuning) as store:
        store.upsert([Item("other", [0.0, 1.0], metadata={"kept": 1})])
        try:
            if edit:
                store.upsert([Item("x", [1.0, 0.0])])
                store.update("x", {"metadata": metadata})
                metadata = without_null(metadata)
            else:
                store.upsert([Item("x", [1.0, 0.0], metadata=metadata)])
        except StoreError:
            assert len(wraps) > 20
            metadata = {}
        expected = {"other": {"kept": 1}, "x": metadata}
        for _ in range(2):
            assert {item.id: item.metadata for item in store.scan()}.items() <= expected.items()
            assert {
                hit.id: hit.metadata for hit in store.search([1.0, 0.0]).hits[0]
            }.items() <= expected.items()
            store.flush()  # the second time, hits come from the segment's own records


def without_null(value: Any) -> Any:
    """What a merge patch makes of itself: null means absent, except in lists."""
    if not isinstance(value, dict):
        return value
    return {name: without_null(one) for name, one in value.items() if one is not None}


def test_depth_and_size_have_limits(tmp_path: Path) -> None:
    with FaissStore.open(tmp_path / "store", dim=2) as store:
        for metadata, word in (
            ({"x": wrapped(1, ["list"] * MOST_NESTED)}, "deep"),
            ({"x": "y" * MOST_METADATA_BYTES}, "bytes"),
        ):
            with pytest.raises(StoreError, match=f"item 'bad'.*{word}") as caught:
                store.upsert([Item("good", [1.0, 0.0]), Item("bad", [1.0, 0.0], metadata=metadata)])
            assert caught.value.position == 1
            assert store.count() == 0
        store.upsert([Item("x", [1.0, 0.0], metadata={"x": wrapped(1, ["list"] * (MOST_NESTED - 1))})])
        # Edits that fit one by one do not add up beyond the limit.
        store.update("x", {"metadata": {"a": "y" * 40_000}})
        with pytest.raises(StoreError, match="bytes"):
            store.update("x", {"metadata": {"b": "y" * 40_000}})
        assert store.get(["x"])[0].metadata.keys() == {"x", "a"}


@pytest.mark.parametrize(
    "text",
    ['{"x":' * 986 + "1" + "}" * 986, '{"x":' * 1500 + "1" + "}" * 1500, "{", "[1]"],
    ids=lambda t: t[:9],
)
@pytest.mark.parametrize("index", ["Flat", "HNSW8"])
def test_what_an_earlier_version_left_harms_no_other_item(
    tmp_path: Path, text: str, index: str, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    tuning = Tuning(memtable_rows=8, approximate_rows=10, build_threads=1)
    place = tmp_path / "store"
    with FaissStore.open(place, dim=4, index=index, tuning=tuning) as store:
        store.upsert([Item(n, rng.standard_normal(4), "cat", {"n": n}) for n in range(20)])
        database = store.place / "items.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE items SET metadata = ? WHERE id = 7", (text,))
        connection.commit()
    expected = {n: {} if n == 7 else {"n": n} for n in range(20)}
    for folder in ("as it was left", "rebuilt"):
        if folder == "rebuilt":
            (database.parent / "manifest.json").unlink(missing_ok=True)
        with FaissStore.open(place, tuning=tuning) as store:
            for _ in range(2):
                assert {item.id: item.metadata for item in store.scan()} == expected
                hits = store.search(np.ones(4), 20, exact=True).hits[0]
                assert {hit.label for hit in hits} == {"cat"}
                if folder == "rebuilt":  # before, the segment still has what it was written with
                    assert {hit.id: hit.metadata for hit in hits} == expected
                store.flush()
            assert store.get([7])[0].metadata == {}
            assert "is shown empty" in caplog.text
    with FaissStore.open(place, tuning=tuning) as store:
        store.update(7, {"metadata": {"n": 7}})
        assert store.get([7])[0].metadata == {"n": 7}


def test_a_segment_of_an_earlier_version_may_hold_deep_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        for module in ("items", "segment"):
            earlier.setattr(f"serve.store.{module}.MOST_NESTED", 1000)
        with FaissStore.open(tmp_path / "store", dim=4) as store:
            deep = wrapped(1, ["object"] * 900)
            store.upsert(Item(n, np.eye(4)[n], "cat", deep if n == 2 else {"n": n}) for n in range(4))
            store.flush()
    with FaissStore.open(tmp_path / "store") as store:
        hits = store.search(np.ones(4), 4).hits[0]
    assert {hit.id: hit.metadata for hit in hits} == {0: {"n": 0}, 1: {"n": 1}, 2: {}, 3: {"n": 3}}


def test_merge_patches() -> None:
    """The examples of RFC 7396."""
    for target, patch, result in (
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ):
        assert merged(target, patch) == result
