"""Health, metrics, logs, collections, and a new model taking over."""

import asyncio
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import pytest

from serve.client import ServiceError
from serve.observability import JsonFormatter
from serve.recall import measure
from serve.schemas import NewItem
from serve.store.catalogue import Catalogue


def test_ready_means_that_the_precheck_passes(running, monkeypatch):
    monkeypatch.setattr("serve.api.health._FRESH_SECONDS", 0.0)
    assert httpx.get(f"{running.address}/readyz").json() == {"status": "ok"}
    monkeypatch.setattr(
        running.service.bundle, "embed_tensor", lambda batch: batch.new_full((len(batch), 32), float("nan"))
    )
    sick = httpx.get(f"{running.address}/readyz")
    assert sick.status_code == 503
    assert "not finite" in sick.json()["detail"]
    assert httpx.get(f"{running.address}/healthz").status_code == 200


def test_metrics_tell_stages_batches_items_and_recall(running, picture):
    with running.client() as client:
        client.upsert(picture(1), 1)
        client.search_image(picture(1))
    text = httpx.get(f"{running.address}/metrics").text
    for line in (
        'kindred_requests_total{method="POST",route="/v1/search",status="200"}',
        'kindred_stage_seconds_bucket{le="0.001",stage="decode"}',
        'kindred_stage_seconds_count{stage="network"}',
        'kindred_batch_size_count{stage="network"}',
        'kindred_batch_size_count{stage="search"}',
        'kindred_queue_depth{stage="decode"} 0.0',
        'kindred_items{collection="default"}',
    ):
        assert line in text


def test_metrics_and_figures_say_that_the_index_is_not_kept_up(running, monkeypatch):
    def shown() -> str:
        text = httpx.get(f"{running.address}/metrics").text
        return next(line for line in text.splitlines() if line.startswith("kindred_index_trouble{"))

    with running.client() as client:
        assert client.stats().trouble is None
        assert shown() == 'kindred_index_trouble{collection="default"} 0.0'
        troubled = replace(running.store.stats(), trouble="the disk is full")
        monkeypatch.setattr(running.store, "stats", lambda: troubled)
        assert client.stats().trouble == "the disk is full"
        assert shown() == 'kindred_index_trouble{collection="default"} 1.0'


def test_metrics_have_no_series_for_each_item(running):
    for item_id in ("erstes", "zweites"):
        httpx.get(f"{running.address}/v1/items/{item_id}")
    text = httpx.get(f"{running.address}/metrics").text
    assert "{item_id" in text
    assert "zweites" not in text


def test_reads_do_not_wait_for_changes(start, picture, monkeypatch):
    """However many changes stand behind an erasure, which rewrites the database."""
    running = start()
    erasing, erased = threading.Event(), threading.Event()

    def purge():
        erasing.set()
        assert erased.wait(60)

    with running.client() as client, ThreadPoolExecutor(40) as pool:
        client.upsert(picture(1), "kept", label="x")
        monkeypatch.setattr(running.store, "purge", purge)
        changes = [
            *(
                pool.submit(httpx.post, f"{running.address}/v1/items/delete", json=body, timeout=60)
                for body in [{"ids": ["none"], "erase": True}] * 20
            ),
            *(
                pool.submit(httpx.patch, f"{running.address}/v1/items/other", json={"label": "y"}, timeout=60)
                for _ in range(8)
            ),
            *(
                pool.submit(httpx.post, f"{running.address}/v1/import", content=b"{}", timeout=60)
                for _ in range(8)
            ),
        ]
        try:
            assert erasing.wait(20)
            assert client.get("kept").label == "x"
            assert client.labels() == {"x": 1}
            assert client.search_vector([1.0] * 32, exact=True).hits[0].id == "kept"
            assert client.count() == 1
        finally:
            erased.set()
        assert {change.result().status_code for change in changes} == {200, 404}


def test_recall_of_an_exact_index_is_one(running, picture):
    with running.client() as client:
        for seed in range(25):
            client.upsert(picture(seed), seed)
    recall, queries = measure(running.store, samples=8)
    assert (recall, queries) == (1.0, 8)


def test_request_ids_are_taken_over_when_plain(running):
    given = httpx.get(f"{running.address}/healthz", headers={"x-request-id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    odd = httpx.get(f"{running.address}/healthz", headers={"x-request-id": "a b\tc" * 40})
    assert odd.headers["x-request-id"] != "a b\tc" * 40


def test_logs_are_json_lines_with_the_request_id(running, caplog):
    with caplog.at_level(logging.INFO, "kindred.serve"):
        httpx.get(f"{running.address}/v1/stats", headers={"x-request-id": "find-me"})
        for _ in range(500):  # the answer is on its way before the log has its line
            found = [entry for entry in caplog.records if "find-me" in str(vars(entry))]
            if found:
                break
            time.sleep(0.01)
    (record,) = found
    line = json.loads(JsonFormatter().format(record))
    assert (line["route"], line["status"], line["request_id"]) == ("/v1/stats", 200, "find-me")


def test_an_error_of_ours_is_a_500_that_tells_nothing(running, monkeypatch, caplog):
    def broken():
        raise RuntimeError("secret")

    monkeypatch.setattr(running.store, "labels", broken)
    response = httpx.get(f"{running.address}/v1/labels")
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["request_id"]
    assert "secret" in caplog.text


def test_verify_decides_by_the_threshold(running, picture):
    with running.client() as client:
        same = client.verify(picture(1), picture(1))
        assert same.same is True
        assert (same.threshold, same.false_accept_rate) == (0.9, 0.001)
        assert client.verify(picture(1), picture(1), false_accept_rate="0.01").threshold == 0.5
        with pytest.raises(ServiceError, match=r"0\.5.*0\.001, 0\.01"):
            client.verify(picture(1), picture(2), false_accept_rate="0.5")
        with pytest.raises(ServiceError, match="second"):
            client.verify(picture(1), b"no image")


def test_an_answer_is_of_one_model_while_another_takes_over(start, picture, make_model, monkeypatch):
    running = start()
    service = running.service
    old, new = service.pipeline, make_model(1)
    new.thresholds = {"0.5": 0.1}
    fresh = service._pipeline(new)
    embed_many, store = old.embed_many, service.store

    async def embed(images):
        service.pipeline = fresh
        return await embed_many(images)

    monkeypatch.setattr(old, "embed_many", embed)
    with running.client() as client:
        assert client.verify(picture(1), picture(1)).thresholds == {"0.01": 0.5, "0.001": 0.9}

    async def opening(name=None):
        service.pipeline = old
        return await store(name)

    monkeypatch.setattr(service, "store", opening)  # the model of the check is the one after the opening
    assert httpx.get(f"{running.address}/readyz").json() == {"status": "ok"}
    monkeypatch.undo()
    asyncio.run(fresh.drain())


def test_embed_gives_the_bundles_vectors(running, bundle, picture):
    images = [picture(1), picture(2)]
    with running.client() as client:
        answer = client.embed(images)
    np.testing.assert_allclose(answer.vectors, bundle.embed(images), atol=1e-6)
    raw = httpx.post(
        f"{running.address}/v1/embed",
        files=[("image", image) for image in images],
        headers={"accept": "application/octet-stream"},
    )
    np.testing.assert_allclose(np.frombuffer(raw.content, "<f4").reshape(2, -1), answer.vectors, atol=1e-6)


def test_collections_live_side_by_side(start, picture):
    with start().client() as client:
        client.create_collection("other")
        client.upsert(picture(1), "there", collection="other")
        assert client.get("there") is None
        assert client.get("there", collection="other").id == "there"
        client.set_alias("current", "other")
        assert client.search_image(picture(1), collection="current").hits[0].id == "there"
        listing = client.collections()
        assert [one.name for one in listing.collections] == ["default", "other"]
        assert listing.aliases == {"current": "other"}
        with pytest.raises(ServiceError, match="exists"):
            client.create_collection("other")


def test_a_collection_in_use_is_not_deleted(running):
    with running.client() as client:
        client.create_collection("spare")
    assert httpx.delete(f"{running.address}/v1/collections/default").status_code == 409
    assert httpx.delete(f"{running.address}/v1/collections/spare").status_code == 200
    assert httpx.delete(f"{running.address}/v1/collections/spare").status_code == 404


def test_a_new_model_takes_over_with_its_collection(start, tmp_path, picture, make_model):
    """Re-embedding beside the old collection, then one step for model and alias."""
    old, new = make_model(0), make_model(1)
    old.save(tmp_path / "bundle")
    with Catalogue(tmp_path / "store") as catalogue:
        catalogue.create("first", old.dim, old.fingerprint)
        catalogue.set_alias("current", "first")
    running = start(collection="current")
    with running.client() as client:
        client.upsert(picture(1), "a")
        client.create_collection("second", dim=new.dim, fingerprint=new.fingerprint)
        (vector,) = new.embed([picture(1)]).tolist()
        items = [NewItem(id="a", vector=vector)]
        client.upsert_vectors(items, collection="second", fingerprint=new.fingerprint)
        new.save(tmp_path / "bundle")
        with pytest.raises(ServiceError) as error:
            client.reload()  # the new model on the old collection
        assert (error.value.status, error.value.code) == (409, "fingerprint")
        assert client.model().fingerprint == old.fingerprint
        assert client.reload("current", "second").fingerprint == new.fingerprint
        assert client.search_image(picture(1), k=1).hits[0].similarity == pytest.approx(1, abs=1e-5)
        assert client.collections().aliases == {"current": "second"}
