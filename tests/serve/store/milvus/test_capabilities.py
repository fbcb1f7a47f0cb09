"""What a server can do is told by its version; one that is too old, or says nothing of it, is refused."""

import pytest

from serve.store.milvus.capabilities import LITE, capabilities, parse_index
from serve.store.milvus.engine import Engine, parse_address
from serve.store.milvus.store import MilvusStore
from serve.store.types import StoreError


@pytest.mark.parametrize(
    ("told", "label_index", "drops_indexes", "indexes_metadata"),
    [
        ("v2.3.5-lite", "Trie", False, False),
        ("v2.4.0", "INVERTED", True, False),
        ("v2.5.27", "INVERTED", True, False),
        ("2.6-20250501-1a2b3c4-amd64", "INVERTED", True, True),
        ("v2.10.1", "INVERTED", True, True),
        ("Zilliz Cloud Vector Database(Compatible with Milvus 2.6)", "INVERTED", True, True),
        ("v3.0.0", "INVERTED", True, True),
    ],
)
def test_versions(told: str, label_index: str, drops_indexes: bool, indexes_metadata: bool) -> None:
    can = capabilities(told)
    assert (can.label_index, can.drops_indexes, can.indexes_metadata) == (
        label_index,
        drops_indexes,
        indexes_metadata,
    )
    assert not can.embedded


@pytest.mark.parametrize("told", ["v2.2.16", "v1.1.1", "0.10.3"])
def test_old_servers_are_refused(told: str) -> None:
    with pytest.raises(StoreError, match=r"update it to 2\.3 or newer"):
        capabilities(told)


@pytest.mark.parametrize("told", ["", "unknown", "master"])
def test_servers_without_a_version_are_refused(told: str) -> None:
    with pytest.raises(StoreError, match="released version"):
        capabilities(told)


def test_an_old_server_is_refused_when_it_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    pymilvus = pytest.importorskip("pymilvus")

    class Old:
        def __init__(self, **_: object) -> None: ...

        def get_server_version(self, **_: object) -> str:
            return "v2.2.9"

        def close(self) -> None: ...

    monkeypatch.setattr(pymilvus, "MilvusClient", Old)
    with pytest.raises(StoreError, match="update it"):
        Engine(parse_address("milvus://127.0.0.1"))


@pytest.mark.parametrize(
    ("index", "since"),
    [("SCANN", "2.3"), ("GPU_CAGRA", "2.4"), ("HNSW_SQ", "2.5"), ("IVF_RABITQ", "2.6")],
)
def test_index_types_by_version(index: str, since: str) -> None:
    versions = ["2.3", "2.4", "2.5", "2.6"]
    for version in versions:
        if versions.index(version) < versions.index(since):
            with pytest.raises(StoreError, match=f"Milvus {version} builds no index"):
                parse_index(index, capabilities(version))
        else:
            assert parse_index(index, capabilities(version)).name == index


def test_the_embedded_engine_is_known_by_its_address(lite: Engine) -> None:
    """Not by its version: a server's may be called lite, too."""
    assert lite.can is LITE
    assert lite.call("get_server_version")


def test_a_collection_of_another_format_is_refused(lite: Engine) -> None:
    store = MilvusStore.on(lite, 4, collection="format")
    lite.call("drop_collection", "kindred_format")
    client, kind = lite.pymilvus.MilvusClient, lite.pymilvus.DataType
    schema = client.create_schema(auto_id=False, description='{"fingerprint": null, "index": "FLAT"}')
    schema.add_field("id", kind.VARCHAR, is_primary=True, max_length=100)
    schema.add_field("vector", kind.FLOAT_VECTOR, dim=store.dim)
    for name in ("label", "thumbnail"):
        schema.add_field(name, kind.VARCHAR, max_length=100, nullable=True)
    for name in ("metadata", "facets"):
        schema.add_field(name, kind.JSON)
    schema.add_field("sequence", kind.INT64)
    lite.call(
        "create_collection",
        "kindred_format",
        schema=schema,
        properties={"kindred": '{"fingerprint": null, "index": "FLAT"}'},
    )
    with pytest.raises(StoreError, match="another version of Kindred"):
        MilvusStore.on(lite, collection="format")
    lite.call("drop_collection", "kindred_format")
