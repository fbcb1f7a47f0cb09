"""Payload indexes make filters fast and change no answer."""

from contextlib import nullcontext

import pytest

from serve.store.milvus.capabilities import Capabilities
from serve.store.types import FilterError, Item, Store, Unsupported


@pytest.mark.parametrize(
    ("field", "least"),
    [("label", "label 4"), ("id", "item 20"), ("metadata.price", 5.0), ("metadata.shop.city", "C")],
)
def test_field_indexes_change_no_answer(
    filled: Store, items: list[Item], field: str, least: str | float, can: Capabilities | None
) -> None:
    where = {field: {"gte": least}}
    before = [item.id for item in filled.scan(where=where)]
    assert 0 < len(before) < len(items)
    if can and not can.indexes_metadata and field.startswith("metadata"):
        with pytest.raises(Unsupported, match="without"):
            filled.create_field_index(field)
        return
    filled.create_field_index(field)
    filled.create_field_index(field)
    assert [item.id for item in filled.scan(where=where)] == before
    assert field == "id" or field in filled.stats().field_indexes
    if can and not can.drops_indexes:
        with pytest.raises(Unsupported, match="copy") if field == "label" else nullcontext():
            filled.drop_field_index(field)
        return
    filled.drop_field_index(field)
    filled.drop_field_index(field)
    assert field not in filled.stats().field_indexes
    assert [item.id for item in filled.scan(where=where)] == before


def test_a_field_has_one_index_however_it_is_written(filled: Store, can: Capabilities | None) -> None:
    if can and not can.indexes_metadata:
        return
    filled.create_field_index('metadata."shop"."my "')
    filled.create_field_index('metadata.shop."it\'s, [0]"')
    filled.create_field_index('metadata."shop"."city"')
    filled.create_field_index("metadata.shop.city")
    indexes = {"label", "metadata.shop.city", 'metadata.shop."my "', 'metadata.shop."it\'s, [0]"'}
    assert set(filled.stats().field_indexes) | {"label"} == indexes
    filled.drop_field_index('metadata.shop."city"')
    assert set(filled.stats().field_indexes) | {"label"} == indexes - {"metadata.shop.city"}


def test_fields_outside_the_language_are_refused(filled: Store) -> None:
    for change in (filled.create_field_index, filled.drop_field_index):
        with pytest.raises(FilterError):
            change("metadata.a b")
