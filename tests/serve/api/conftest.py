"""What the API says of items and their search holds over either kind of store."""

import pytest

OVER_BOTH = ("test_items", "test_search", "test_collections")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "running" in metafunc.fixturenames and metafunc.module.__name__.endswith(OVER_BOTH):
        metafunc.parametrize("running", ["folder", "milvus"], indirect=True, scope="module")
