"""Only index types that the engine builds are accepted; that it builds them is looked up in its files."""

import time
import uuid
from pathlib import Path

import faiss
import numpy as np
import pytest

from serve.store.milvus.capabilities import LITE, capabilities, parse_index
from serve.store.milvus.engine import Engine
from serve.store.milvus.store import MilvusStore
from serve.store.types import Item, StoreError, Unsupported

SERVER = capabilities("v2.6.0")

BUILT = {
    "HNSW,M=8": "IndexHNSWFlat",
    "HNSW_SQ": "IndexHNSWSQ",
    "IVF_FLAT,nlist=4": "IndexIVFFlat",
    "IVF_SQ8,nlist=4": "IndexIVFScalarQuantizer",
}


def index_file(engine: Engine, store: MilvusStore) -> Path:
    """The index of the one segment, built in the background."""
    place = engine.address.folder / "collections" / f"kindred_{store.name.replace('-', '_d')}"
    for _ in range(600):
        found = list(place.rglob("*.vector.*.idx"))
        if found:
            return found[0]
        time.sleep(0.05)
    pytest.fail("milvus-lite built no index")


@pytest.mark.parametrize("index", BUILT)
def test_milvus_lite_builds_what_is_accepted(lite: Engine, index: str) -> None:
    vectors = np.random.default_rng(0).standard_normal((400, 8)).astype("f4")
    store = MilvusStore.on(lite, 8, index=index, collection=f"index-{uuid.uuid4().hex[:8]}")
    store.upsert(Item(n, vector) for n, vector in enumerate(vectors))
    store.flush()
    owner = faiss.read_index(str(index_file(lite, store)))
    built = faiss.downcast_index(owner)  # lives no longer than its owner
    assert type(built).__name__ == BUILT[index]
    assert built.ntotal == 400
    hits = store.search(vectors[7], 3).hits[0]
    assert hits[0].id == 7
    exact = store.search(vectors[:5], 3, exact=True)
    assert exact.plan.strategy == "exact"
    assert exact.plan.candidates == 400
    assert [row[0].id for row in exact.hits] == [0, 1, 2, 3, 4]


def test_every_embedded_type_is_among_these() -> None:
    assert {index.partition(",")[0] for index in BUILT} | {"FLAT"} == set(LITE.indexes)


def test_milvus_lite_itself_takes_any_name_and_builds_nothing(lite: Engine) -> None:
    """The trap that `parse_index` closes; should this fail, milvus-lite has learnt to refuse."""
    for name in sorted(set(SERVER.indexes) - set(LITE.indexes)):
        if name != "AUTOINDEX":  # an alias of HNSW there, so it is not offered twice
            with pytest.raises(StoreError, match="milvus-lite builds no"):
                parse_index(name, LITE)
    client = lite.pymilvus.MilvusClient
    indexes = client.prepare_index_params()
    indexes.add_index("v", index_type="DISKANN", metric_type="COSINE")
    schema = client.create_schema()
    schema.add_field("id", lite.pymilvus.DataType.INT64, is_primary=True)
    schema.add_field("v", lite.pymilvus.DataType.FLOAT_VECTOR, dim=4)
    lite.call("create_collection", "trap", schema=schema, index_params=indexes)
    lite.call("insert", "trap", [{"id": 1, "v": [1.0, 0.0, 0.0, 0.0]}])
    assert lite.call("describe_index", "trap", "v")["index_type"] == "DISKANN"
    assert len(lite.call("search", "trap", data=[[1.0, 0.0, 0.0, 0.0]], limit=1)[0]) == 1
    assert not list((lite.address.folder / "collections" / "trap").rglob("*.idx"))
    lite.call("drop_collection", "trap")


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        (None, "FLAT", {}),
        ("Flat", "FLAT", {}),
        ("HNSW32", "HNSW", {"M": 32}),
        ("hnsw, M=8 ,ef=200", "HNSW", {"M": 8, "ef": 200}),
        ("IVF_FLAT,nlist=7", "IVF_FLAT", {"nlist": 7, "nprobe": 16}),
    ],
)
def test_texts(text: str | None, name: str, parameters: dict) -> None:
    index = parse_index(text, LITE)
    assert index.name == name
    assert parameters.items() <= (index.build | index.search).items()
    assert parse_index(str(index), LITE) == index


@pytest.mark.parametrize("text", ["HNSW,M", "HNSW,M=", "HNSW,=3", "IVF256,PQ8", "", "HNSW,M=a b"])
def test_malformed_texts_are_refused(text: str) -> None:
    with pytest.raises(StoreError):
        parse_index(text, SERVER)


def test_a_graph_looks_at_no_fewer_than_k() -> None:
    assert parse_index("HNSW", LITE).search_parameters(500)["ef"] == 500


def test_a_selective_filter_does_not_cost_recall(lite: Engine) -> None:
    """milvus-lite's own filtered graph search found 15% of the right ones at 0.1%, see docs/store.md."""
    vectors = np.random.default_rng(0).standard_normal((1500, 8)).astype("f4")
    store = MilvusStore.on(lite, 8, index="HNSW,M=8", collection=f"index-{uuid.uuid4().hex[:8]}")
    store.upsert(Item(n, vector, metadata={"bucket": n % 100}) for n, vector in enumerate(vectors))
    store.flush()
    index_file(lite, store)
    for below in (1, 10, 25):
        where = {"metadata.bucket": {"lt": below}}
        result = store.search(vectors[:20], 10, where=where)
        assert (result.plan.strategy, result.plan.candidates) == ("exact_subset", 15 * below)
        exact = store.search(vectors[:20], 10, where=where, exact=True)
        assert [[hit.id for hit in hits] for hits in result.hits] == [
            [hit.id for hit in hits] for hits in exact.hits
        ]
    assert store.search(vectors[0], 10, where={"metadata.bucket": {"lt": 90}}).plan.strategy == "approximate"


def test_an_exact_search_over_too_many_vectors_is_refused(
    lite: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.store.milvus.reader._MOST_FETCHED", 40)
    store = MilvusStore.on(lite, 8, index="HNSW", collection=f"index-{uuid.uuid4().hex[:8]}")
    store.upsert(Item(n, np.eye(8)[n]) for n in range(8))
    with pytest.raises(Unsupported, match="FLAT"):
        store.search(np.ones(8), exact=True)
    assert len(store.search(np.ones(8), exact=True, where={"id": {"lt": 3}}).hits[0]) == 3
