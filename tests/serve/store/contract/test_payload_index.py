"""Payload indexes make filters fast and change no answer."""

import pytest

from serve.store.protocol import FilterError, Item, Store, Unsupported


@pytest.mark.parametrize(
    ("field", "least"),
    [("label", "label 4"), ("id", "item 20"), ("metadata.price", 5.0), ("metadata.shop.city", "C")],
)
def test_payload_indexes_change_no_answer(
    filled: Store, items: list[Item], field: str, least: str | float, kind: str
) -> None:
    where = {field: {"gte": least}}
    before = [item.id for item in filled.scan(where=where)]
    assert 0 < len(before) < len(items)
    if kind.startswith("lite") and field.startswith("metadata"):
        with pytest.raises(Unsupported, match="without"):
            filled.create_payload_index(field)
        return
    filled.create_payload_index(field)
    filled.create_payload_index(field)
    assert [item.id for item in filled.scan(where=where)] == before
    assert field == "id" or field in filled.stats().payload_indexes


def test_fields_outside_the_language_are_refused(filled: Store) -> None:
    with pytest.raises(FilterError):
        filled.create_payload_index("metadata.a b")
