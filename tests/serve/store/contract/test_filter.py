"""The filter language, against a naive interpreter of it."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.store.types import FilterError, Item, Store

MISSING = object()


def value_of(item: Item, field: str) -> Any:
    if field in ("id", "label"):
        return getattr(item, field)
    value: Any = item.metadata
    for name in field.split(".")[1:]:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def same_kind(a: Any, b: Any) -> bool:
    return isinstance(a, str) == isinstance(b, str)


def holds(item: Item, field: str, operator: str, operand: Any) -> bool:
    value = value_of(item, field)
    if operator == "exists":
        return (value is not None) == operand
    if operator == "ne":
        return not holds(item, field, "eq", operand)
    if operator == "eq":
        return value == operand
    if operator == "in":
        return value in operand
    if value is None:
        return False
    if operator == "prefix":
        return isinstance(value, str) and value.startswith(operand)
    if operator == "contains":
        return isinstance(value, list) and operand in value
    if isinstance(value, list | dict) or not same_kind(value, operand):
        return False
    return {"gt": value > operand, "gte": value >= operand, "lt": value < operand, "lte": value <= operand}[
        operator
    ]


def passes(item: Item, where: dict[str, Any]) -> bool:
    def one(key: str, value: Any) -> bool:
        if key == "and":
            return all(passes(item, part) for part in value)
        if key == "or":
            return any(passes(item, part) for part in value)
        if key == "not":
            return not passes(item, value)
        conditions = value if isinstance(value, dict) else {"eq": value}
        return all(holds(item, key, operator, operand) for operator, operand in conditions.items())

    return all(one(key, value) for key, value in where.items())


NUMBERS = st.sampled_from([-1, 0, 3, 7.5, 25, 49.75])
TEXTS = st.sampled_from(["A", "B", "label 1", "label 5", "item 4", "", "x", "Z'; --"])
RANGES = st.sampled_from(["gt", "gte", "lt", "lte"])
PRICE = st.one_of(
    st.dictionaries(RANGES, NUMBERS | TEXTS, min_size=1, max_size=2),
    st.fixed_dictionaries({"in": st.lists(NUMBERS, max_size=3)}),
    st.fixed_dictionaries({"ne": NUMBERS}),
    NUMBERS,
)
WORD = st.one_of(
    TEXTS,
    st.none(),
    st.dictionaries(RANGES, TEXTS, min_size=1, max_size=2),
    st.fixed_dictionaries({"in": st.lists(TEXTS, max_size=3)}),
    st.fixed_dictionaries({"ne": TEXTS | st.none()}),
    st.fixed_dictionaries({"exists": st.booleans()}),
    st.fixed_dictionaries({"prefix": TEXTS | st.sampled_from(["label", "l", "item 1", "\U0010ffff"])}),
)
TERM = st.one_of(
    st.fixed_dictionaries({"metadata.price": PRICE}),
    st.fixed_dictionaries({"label": WORD}),
    st.fixed_dictionaries({"metadata.shop.city": WORD}),
    st.fixed_dictionaries({"metadata.absent": WORD}),
    st.fixed_dictionaries({"metadata.tags": st.fixed_dictionaries({"contains": TEXTS | NUMBERS})}),
    st.fixed_dictionaries(
        {
            "id": st.one_of(
                TEXTS,
                st.integers(0, 9),
                st.fixed_dictionaries({"gt": NUMBERS | TEXTS}),
                st.fixed_dictionaries({"prefix": st.sampled_from(["item 1", "item", "", "j"])}),
            )
        }
    ),
)
WHERE = st.recursive(
    TERM,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"and": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"or": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"not": inner}),
        st.builds(lambda a, b: a | b, TERM, inner),
    ),
    max_leaves=6,
)


def test_filters_pass_what_the_naive_interpreter_passes(filled: Store, items: list[Item], kind: str) -> None:
    # Milvus answers a hundred times slower; its translation alone is tried more often in test_expressions.py.
    @settings(max_examples=60 if kind in ("memtable", "segments", "hnsw") else 15, deadline=None)
    @given(where=WHERE)
    def check(where: dict) -> None:
        expected = {item.id for item in items if passes(item, where)}
        assert {item.id for item in filled.scan(where=where)} == expected
        assert filled.count(where) == len(expected)
        hits = filled.search(items[0].vector, 200, where=where, exact=True).hits[0]
        assert {hit.id for hit in hits} == expected

    check()


def test_filtered_search_is_the_naive_one_after_every_kind_of_write(
    filled: Store, items: list[Item], brute_force: Any
) -> None:
    """The masks that a store may remember follow upserts, deletes and edits."""
    rng = np.random.default_rng(3)
    where = {"metadata.price": {"lt": 30}, "label": {"ne": "label 2"}}
    model = {item.id: item for item in items}
    for round_ in range(30):
        ids = [items[number].id for number in rng.choice(len(items), 5, replace=False)]
        if round_ % 3 == 0:
            filled.delete(ids)
            model = {id_: item for id_, item in model.items() if id_ not in ids}
        elif round_ % 3 == 1:
            new = [
                Item(id_, rng.standard_normal(16), "label 1", {"price": int(rng.integers(60))}) for id_ in ids
            ]
            filled.upsert(new)
            model |= {item.id: item for item in new}
        else:
            for id_ in set(ids) & set(model):
                filled.update(
                    id_, {"metadata": {"price": 10}, "label": "label 2" if round_ % 2 else "label 3"}
                )
                item = model[id_]
                label = "label 2" if round_ % 2 else "label 3"
                model[id_] = Item(id_, item.vector, label, {**item.metadata, "price": 10})
        query = rng.standard_normal((1, 16)).astype(np.float32)
        expected = brute_force([item for item in model.values() if passes(item, where)], query, 10)[0]
        hits = filled.search(query, 10, where=where, exact=True).hits[0]
        assert [hit.id for hit in hits] == [id_ for id_, _ in expected]


OUTSIDE: list[Any] = [
    {"price": 3},
    {"metadata": 3},
    {"metadata.": 3},
    {"metadata.a'b": 3},
    {"metadata.a b": 3},
    {'metadata."a': 3},
    {'metadata.""': 3},
    {'metadata."a\\"': 3},
    {'metadata."a\n"': 3},
    {'metadata."\ud800"': 3},
    {'metadata."a"b': 3},
    {"label": {"prefix": 3}},
    {"label": {"prefix": "\ud800"}},
    {"metadata.a.": 3},
    {'metadata.x") OR 1=1 --': 3},
    {"metadata.x": {"like": "a%"}},
    {"metadata.x": {}},
    {"metadata.x": [1]},
    {"metadata.x": {"in": "abc"}},
    {"metadata.x": {"in": [[1]]}},
    {"metadata.x": {"in": [None]}},
    {"metadata.x": {"exists": 1}},
    {"metadata.x": {"gt": None}},
    {"metadata.x": float("nan")},
    {"metadata.x": 2**64},
    {"metadata.x": "\ud800"},
    {"metadata.x": "a\0b"},
    {"metadata.x": {"in": ["a\0b"]}},
    {"metadata.x": {"contains": "\0"}},
    {"id": {"gt": "\0"}},
    {"label": 3},
    {"label": {"contains": "x"}},
    {"and": {"label": "x"}},
    {"or": "label"},
    {"not": [{"label": "x"}]},
    {"and": ["label"]},
    {3: 4},
    ["label"],
    "label",
    3,
    {"or": [{"label": "x"}] * 300},
    {"id": {"in": list(range(20_000))}},
]


def test_what_is_outside_the_language_is_refused(filled: Store) -> None:
    for where in OUTSIDE:
        for use in (filled.count, lambda where: filled.search(np.ones(16), where=where)):
            with pytest.raises(FilterError) as caught:
                use(where)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 200


def test_deep_filters_are_refused_or_answered(filled: Store) -> None:
    where: dict[str, Any] = {"label": "label 1"}
    for _ in range(14):
        where = {"not": where}
    assert filled.count(where) == 25
    terms: dict[str, Any] = {"or": [{"label": f"label {n}"} for n in range(200)]}
    assert filled.count({"and": [where, terms]}) == 25
    for _ in range(5000):
        where = {"not": where}
    with pytest.raises(FilterError):
        filled.count(where)


ODD_NAMES = [
    "a.b",
    "my key",
    "it's",
    "%",
    "größe",
    "名前 x",
    "json_extract(",
    "$",
    "[0]",
    "a-b",
    "\u2028",
    "?",
]


def test_odd_names_are_said_in_quotes(store: Store) -> None:
    names = [*ODD_NAMES, 'a"b', "a\\b", "a"]
    store.upsert(
        Item(n, np.eye(16)[n], metadata={name: {"x.y": n, "tags": [name]}}) for n, name in enumerate(names)
    )
    for n, name in enumerate(ODD_NAMES):
        assert store.count({f'metadata."{name}"."x.y"': n}) == 1
        assert store.count({f'metadata."{name}"."x.y"': {"lt": n}}) == 0
        assert store.count({f'metadata."{name}"': {"exists": True}}) == 1
        assert [item.id for item in store.scan(where={f'metadata."{name}".tags': {"contains": name}})] == [n]
        assert store.search(np.ones(16), where={f'metadata."{name}"."x.y"': n}).hits[0][0].id == n
    assert store.count({'metadata."a"."x.y"': len(names) - 1}) == 1
    assert store.count({"metadata.a.x.y": {"exists": True}}) == 0


PREFIXES: dict[str, set[str]] = {
    "": {"", "a", "ab%", "ab_", "abc", "a\U0010ffffz", "\ud7ffx", "\ue000", "3"},
    "a": {"a", "ab%", "ab_", "abc", "a\U0010ffffz"},
    "ab%": {"ab%"},
    "ab_": {"ab_"},
    "a\U0010ffff": {"a\U0010ffffz"},
    "\ud7ff": {"\ud7ffx"},
    "\U0010ffff": set(),
    "{": set(),
}


def test_a_prefix_is_of_text(store: Store) -> None:
    texts = ["", "a", "ab%", "ab_", "abc", "a\U0010ffffz", "\ud7ffx", "\ue000", "3"]
    values = [*texts, 3, {"a": 1}, ["a"], None]
    store.upsert(
        Item(n, np.eye(16)[n], label=value if isinstance(value, str) else None, metadata={"x": value})
        for n, value in enumerate(values)
    )
    for (prefix, passing), field in itertools.product(PREFIXES.items(), ("label", "metadata.x")):
        found = {item.id for item in store.scan(where={field: {"prefix": prefix}})}
        assert {values[n] for n in found} == passing
        others = {item.id for item in store.scan(where={"not": {field: {"prefix": prefix}}})}
        assert others == set(range(len(values))) - found
    store.upsert([Item("abc", np.ones(16)), Item(7, np.ones(16))])
    assert store.count({"id": {"prefix": "ab"}}) == 1
