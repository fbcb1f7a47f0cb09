"""Collections and aliases over HTTP."""

import httpx
import pytest

from serve.client import ServiceError


def test_an_alias_moves_from_one_collection_to_another(running, picture):
    with running.client() as client:
        for name, seed in (("first", 1), ("second", 2)):
            client.create_collection(name)
            client.upsert(picture(seed), name, collection=name)
        client.set_alias("live", "first")
        assert client.get("first", collection="live").id == "first"
        client.set_alias("live", "second")
        assert client.search_image(picture(2), k=1, collection="live").hits[0].id == "second"
        assert client.get("first", collection="live") is None
        assert client.collections().aliases == {"live": "second"}
        with pytest.raises(ServiceError, match="alias"):
            client.delete_collection("second")
        with pytest.raises(ServiceError, match="exists"):
            client.create_collection("live")
        client.set_alias("live", None)
        client.delete_collection("second")
        client.delete_collection("first")
        assert [one.name for one in client.collections().collections] == ["default"]
    answer = httpx.get(f"{running.address}/v1/stats", params={"collection": "second"})
    assert answer.status_code == 404


def test_figures_labels_and_health(running, picture, bundle):
    with running.client() as client:
        for seed in range(4):
            client.upsert(picture(seed), seed, label="ab"[seed % 2])
        stats = client.stats()
        assert (stats.items, stats.dim, stats.fingerprint) == (4, bundle.dim, bundle.fingerprint)
        assert stats.index.upper() == "FLAT"
        assert client.labels() == {"a": 2, "b": 2}
    assert httpx.get(f"{running.address}/readyz").status_code == 200
    assert 'kindred_items{collection="default"} 4.0' in httpx.get(f"{running.address}/metrics").text
