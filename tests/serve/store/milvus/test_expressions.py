"""No value escapes from its quotes, and a translated filter passes what the filter passes."""

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from milvus_lite.schema.types import CollectionSchema, DataType, FieldSchema
from milvus_lite.search.filter import parse_expr
from milvus_lite.search.filter.ast import CmpOp, InOp, StringLit
from milvus_lite.search.filter.eval.python_backend import evaluate_python
from milvus_lite.search.filter.semantic import compile_expr

from serve.store.milvus.capabilities import LITE, capabilities
from serve.store.milvus.expressions import expression, keys_in, quoted
from serve.store.milvus.schema import facets_of, key_of

SERVER = capabilities("v2.6.0")
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@given(TEXT)
def test_a_quoted_text_is_read_as_that_text(text: str) -> None:
    parsed = parse_expr(f"label == {quoted(text)}")
    assert isinstance(parsed, CmpOp)
    assert isinstance(parsed.right, StringLit)
    assert parsed.right.value == text


@given(st.lists(TEXT.filter(bool), min_size=1, max_size=3))
def test_ids_stay_a_list_of_ids(ids: list[str]) -> None:
    parsed = parse_expr(keys_in(ids))
    assert isinstance(parsed, InOp)
    assert [element.value for element in parsed.values.elements] == [key_of(value) for value in ids]


@pytest.mark.parametrize("value", ['x" or id != "', "\\", '\\"', "a\nb", "' or 1 == 1 or '"])
def test_injections_stay_values(value: str) -> None:
    for engine in (SERVER, LITE):
        for where in ({"label": value}, {"id": {"gt": value}}, {"metadata.a": {"in": [value, "b"]}}):
            text = expression(where, engine)
            assert text.replace(quoted(value)[1:-1], "").count("or") <= 1


def test_an_engine_that_knows_lists_in_json_gets_them() -> None:
    where = {"metadata.a": {"in": [1, 2]}}
    assert expression(where, SERVER) == 'facets["n:a"] in [1, 2]'
    assert expression(where, LITE) == 'facets["n:a"] == 1 or facets["n:a"] == 2'


def test_facets_say_kinds() -> None:
    metadata = {
        "price": 3.0,
        "new": True,
        "none": None,
        "tags": ["a", 1, False, None, {"x": 1}],
        "shop": {"city": "B", "big": 2**70, "no.name": 1},
    }
    assert facets_of(metadata) == {
        "n:price": 3,
        "n:new": 1,
        "o:tags": 1,
        "l:tags": ["ta", "n1", "n0"],
        "o:shop": 1,
        "t:shop.city": "B",
        "n:shop.big": float(2**70),
        "n:shop.no%00002ename": 1,
    }


PLAIN = st.one_of(st.sampled_from([-1, 0, 1, 3, 7.5, True, False]), st.sampled_from(["", "A", "x", '"', "3"]))
METADATA = st.dictionaries(
    st.sampled_from(["a", "b"]),
    st.one_of(st.none(), PLAIN, st.lists(PLAIN | st.none(), max_size=3), st.fixed_dictionaries({"c": PLAIN})),
)
SCALAR = PLAIN.filter(lambda value: not isinstance(value, bool))
FIELD = st.sampled_from(["metadata.a", "metadata.b", "metadata.a.c"])
CONDITION = st.one_of(
    st.builds(lambda field, value: {field: value}, FIELD, SCALAR | st.none()),
    st.builds(
        lambda field, name, value: {field: {name: value}},
        FIELD,
        st.sampled_from(["ne", "gt", "gte", "lt", "lte", "contains"]),
        SCALAR,
    ),
    st.builds(lambda field, values: {field: {"in": values}}, FIELD, st.lists(SCALAR, max_size=3)),
    st.builds(lambda field, there: {field: {"exists": there}}, FIELD, st.booleans()),
)
WHERE = st.recursive(
    CONDITION,
    lambda inner: st.one_of(
        st.builds(lambda part: {"not": part}, inner),
        st.builds(
            lambda name, parts: {name: parts}, st.sampled_from(["and", "or"]), st.lists(inner, max_size=3)
        ),
    ),
    max_leaves=5,
)


def naive(metadata: dict, where: dict) -> bool:
    """The filter language, said plainly; absent and null are the same."""
    if "not" in where:
        return not naive(metadata, where["not"])
    if "and" in where:
        return all(naive(metadata, part) for part in where["and"])
    if "or" in where:
        return any(naive(metadata, part) for part in where["or"])
    ((field, conditions),) = where.items()
    value = metadata
    for name in field.split(".")[1:]:
        value = value.get(name) if isinstance(value, dict) else None
    conditions = conditions if isinstance(conditions, dict) else {"eq": conditions}
    ((name, operand),) = conditions.items()
    plain = None if isinstance(value, list | dict) else value
    if name == "exists":
        return (value is not None) == operand
    if name == "eq":
        return value is None if operand is None else plain == operand
    if name == "ne":
        return plain != operand
    if name == "in":
        return plain is not None and plain in operand
    if name == "contains":
        return isinstance(value, list) and operand in value
    if plain is None or isinstance(plain, str) != isinstance(operand, str):
        return False
    return {"gt": plain > operand, "gte": plain >= operand, "lt": plain < operand, "lte": plain <= operand}[
        name
    ]


@settings(max_examples=150, deadline=None)
@given(st.lists(METADATA, min_size=1, max_size=6), WHERE)
def test_translated_filters_pass_what_the_naive_interpreter_passes(metadata: list[dict], where: dict) -> None:
    """Evaluated by milvus-lite's own interpreter, without a server around it."""
    schema = CollectionSchema(
        [
            FieldSchema("sequence", DataType.INT64, is_primary=True),
            FieldSchema("facets", DataType.JSON),
            FieldSchema("vector", DataType.FLOAT_VECTOR, dim=2),
        ]
    )
    rows = {
        "sequence": list(range(len(metadata))),
        "facets": [json.dumps(facets_of(one)) for one in metadata],
    }
    text = expression(where, LITE)
    passed = evaluate_python(compile_expr(parse_expr(text), schema), pa.table(rows)).to_pylist()
    assert passed == [naive(one, where) for one in metadata]
