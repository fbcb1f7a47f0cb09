"""Addresses, names and ids: what goes to Milvus can be told apart and comes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.store.milvus.engine import is_address, milvus_name, our_name, parse_address
from serve.store.milvus.schema import id_of, key_of
from serve.store.types import StoreError


@pytest.mark.parametrize(
    ("text", "server", "database"),
    [
        ("milvus://host", "http://host:19530", ""),
        ("milvus://host:1234/photos", "http://host:1234", "photos"),
        ("HTTPS://host", "https://host:19530", ""),
        ("http://[::1]:80/", "http://[::1]:80", ""),
    ],
)
def test_servers(text: str, server: str, database: str) -> None:
    address = parse_address(text)
    assert (address.server, address.database, address.embedded) == (server, database, False)


@pytest.mark.parametrize(
    ("text", "folder"), [("file:a/b", "a/b"), ("file:///a/b%20c", "/a/b c"), ("file://localhost/a", "/a")]
)
def test_files(text: str, folder: str) -> None:
    assert str(parse_address(text).folder) == folder
    assert parse_address(text).embedded


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("milvus://root:secret@host", "KINDRED_MILVUS_TOKEN"),
        ("milvus://", "no address"),
        ("milvus://host:port", "malformed"),
        ("milvus://host/a/b", "database"),
        ("milvus://host?token=x", "no address"),
        ("file:", "no file"),
        ("file://elsewhere/a", "another machine"),
        ("ftp://host", "no address"),
    ],
)
def test_unusable_addresses_are_refused(text: str, words: str) -> None:
    with pytest.raises(StoreError, match=words) as caught:
        parse_address(text)
    assert "secret" not in str(caught.value)


def test_folders_are_no_addresses() -> None:
    assert not any(map(is_address, ["store", "/a/store", "milvus", "./file", None, 3]))
    assert all(map(is_address, ["milvus://x", "file:x", "http://x", "https://x"]))


IDS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1),
)


@given(IDS)
def test_ids_come_back(item_id: int | str) -> None:
    assert id_of(key_of(item_id)) == item_id


@given(st.lists(IDS))
def test_keys_keep_ids_apart_and_in_order(ids: list[int | str]) -> None:
    assert len({key_of(value) for value in ids}) == len(set(map(repr, ids)))
    for kind in (int, str):
        alike = [value for value in ids if isinstance(value, kind)]
        assert sorted(alike, key=key_of) == sorted(alike)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True))
def test_names_come_back(name: str) -> None:
    inside = milvus_name(name)
    assert inside.isidentifier()
    assert inside.isascii()
    assert len(inside) < 255
    assert our_name(inside) == name


def test_names_of_others_are_not_ours() -> None:
    assert [our_name(name) for name in ("photos", "kindred_", "kindred_a_b", "kindred_a_")] == [None] * 4
