"""No value escapes from its quotes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from milvus_lite.search.filter import parse_expr
from milvus_lite.search.filter.ast import CmpOp, InOp, StringLit

from serve.store.milvus.expressions import Dialect, expression, keys_in, quoted
from serve.store.milvus.facets import facets_of
from serve.store.milvus.keys import key_of
from serve.store.protocol import StoreError

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
    for dialect in (Dialect(in_json=True), Dialect(in_json=False)):
        for where in ({"label": value}, {"id": {"gt": value}}, {"metadata.a": {"in": [value, "b"]}}):
            text = expression(where, dialect)
            assert text.replace(quoted(value)[1:-1], "").count("or") <= 1


def test_an_engine_that_knows_lists_in_json_gets_them() -> None:
    where = {"metadata.a": {"in": [1, 2]}}
    assert expression(where, Dialect(in_json=True)) == 'facets["n:a"] in [1, 2]'
    assert expression(where, Dialect(in_json=False)) == 'facets["n:a"] == 1 or facets["n:a"] == 2'


def test_facets_say_kinds() -> None:
    metadata = {
        "price": 3.0,
        "new": True,
        "none": None,
        "tags": ["a", 1, False, None, {"x": 1}],
        "shop": {"city": "B", "big": 2**70, "not a name!": 1},
    }
    assert facets_of(metadata) == {
        "n:price": 3,
        "n:new": 1,
        "o:tags": 1,
        "l:tags": ["ta", "n1", "n0"],
        "o:shop": 1,
        "t:shop.city": "B",
        "n:shop.big": float(2**70),
    }
    deep: dict = {}
    for _ in range(300):
        deep = {"x": deep}
    with pytest.raises(StoreError, match="nested"):
        facets_of(deep)
