"""A service over Milvus: what it cannot do is a problem with its remedy, and it starts or says why not."""

import httpx
import pytest

from models.errors import InputError
from serve.recall import measure
from serve.server import open_collections
from serve.settings import Settings


def test_what_milvus_cannot_do_is_a_problem(start, picture, tmp_path):
    running = start(store=f"file:{tmp_path / 'lite'}", max_k=20_000)
    with running.client() as client:
        client.upsert(picture(1), "kept", label="a")
        vector = client.get("kept", with_vector=True).vector
    for answer, status, code in (
        (httpx.delete(f"{running.address}/v1/items/kept", params={"erase": "true"}), 501, "unsupported"),
        (
            httpx.post(f"{running.address}/v1/items/delete", json={"ids": ["kept"], "erase": True}),
            501,
            "unsupported",
        ),
        (
            httpx.post(f"{running.address}/v1/search/vector", json={"vector": vector, "k": 17_000}),
            422,
            "store",
        ),
        (
            httpx.post(f"{running.address}/v1/collections", json={"name": "x", "index": "IVF_PQ"}),
            422,
            "store",
        ),
    ):
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == f"urn:kindred:problem:{code}"
        assert len(answer.json()["detail"]) > 30
    with running.client() as client:
        assert client.get("kept").id == "kept"
    assert measure(running.store) == (1.0, 1)


def test_a_service_comes_back_to_its_items(start, picture, tmp_path, bundle):
    options = {"store": f"file:{tmp_path / 'lite'}", "index": "HNSW", "collection": "photos"}
    settings = Settings(bundle=tmp_path, **options)
    collections = open_collections(settings, bundle)
    collections.collection("photos").upsert([], fingerprint=bundle.fingerprint)
    collections.close()
    running = start(**options)
    with running.client() as client:
        client.upsert(picture(3), "x", label="a")
        assert client.search_image(picture(3), k=1).hits[0].id == "x"
        assert client.stats().index.startswith("HNSW")


def test_an_unreachable_server_is_said_at_the_start(bundle):
    with pytest.raises(InputError, match="Milvus running there"):
        open_collections(Settings(store="milvus://127.0.0.1:1", milvus_timeout=0.5), bundle)


def test_settings_keep_addresses_and_folders_apart(monkeypatch):
    assert Settings(store="milvus://host:1/db").store == "milvus://host:1/db"
    assert Settings(store="runs/store").store.name == "store"
    monkeypatch.setenv("KINDRED_MILVUS_TOKEN", "root:secret")
    settings = Settings.read(store="file:/tmp/x")
    assert settings.milvus_token.get_secret_value() == "root:secret"
    assert "secret" not in repr(settings)
    with pytest.raises(InputError, match="KINDRED_MILVUS_TOKEN"):
        Settings.read(store="milvus://root:secret@host")
