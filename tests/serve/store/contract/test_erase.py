"""Erased means gone from the disk; a store that cannot promise that refuses, and deletes nothing."""

import pytest

from serve.store.types import Item, Store, Unsupported


def test_erasing_deletes_or_is_refused(filled: Store, items: list[Item], kind: str) -> None:
    if kind.startswith(("lite", "server")):
        with pytest.raises(Unsupported, match="compact"):
            filled.delete([1], erase=True)
        with pytest.raises(Unsupported):
            filled.purge()
        assert filled.get([1]) != [None]
        assert filled.count() == len(items)
    else:
        assert filled.delete([1], erase=True) == 1
        filled.purge()
        assert filled.count() == len(items) - 1
