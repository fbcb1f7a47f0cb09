import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.seen_classes import pack_classes, seen_classes
from models.errors import InputError


@given(trained=st.sets(st.text(max_size=4)), tested=st.lists(st.text(max_size=4)))
def test_exactly_the_common_names_are_found(trained: set[str], tested: list[str]) -> None:
    assert seen_classes(pack_classes(trained), tested) == [name for name in tested if name in trained]


def test_names_are_not_told() -> None:
    packed = pack_classes(["Ada Lovelace", "Alan Turing"])
    assert len(packed) == 16
    assert packed == pack_classes(["Alan Turing", "Ada Lovelace", "Ada Lovelace"])


def test_damage_is_noticed() -> None:
    with pytest.raises(InputError, match="damaged"):
        seen_classes("not base64!", ["a"])
