"""Every call of the client against the real service, and a collection as the destination of an import."""

import httpx
import numpy as np
import pytest

from serve.client import ServiceError
from serve.client.remote import RemoteCollection
from serve.schemas import NewItem
from serve.store.types import Item


@pytest.fixture
def client(start):
    with start().client() as client:
        client.upsert_vectors(
            NewItem(id=n, vector=[float(n == at) + 0.1 for at in range(32)], label="ab"[n % 2])
            for n in range(8)
        )
        yield client


def axis(at):
    return [float(at == n) for n in range(32)]


def test_search_by_vectors_and_examples(client):
    assert client.search_vector(axis(3), 1).hits[0].id == 3
    answer = client.search_vectors([axis(2), axis(5)], 1, label="b")
    assert [result.hits[0].label for result in answer.results] == ["b", "b"]
    assert answer.results[1].hits[0].id == 5
    hits = client.search_examples([1, 2], [3], k=8, exclude=[4]).hits
    assert {hit.id for hit in hits} == {0, 5, 6, 7}
    hits = client.search_by_id(1, group_by="label", exact=True).hits
    assert sorted(hit.label for hit in hits) == ["a", "b"]
    with pytest.raises(ServiceError) as error:
        client.search_vector(axis(3), fingerprint="another")
    assert error.value.code == "fingerprint"


def test_search_by_images_takes_the_options(client, picture):
    answer = client.search_images([picture(1), b"none"], 3, where={"label": "a"}, min_similarity=-1.0)
    assert {hit.label for hit in answer.results[0].hits} == {"a"}
    assert answer.results[1].error


def test_reading_several_items(client):
    found = client.get_many([5, "nothing", 1], with_vectors=True)
    assert [item and item.id for item in found] == [5, None, 1]
    assert len(found[0].vector) == 32
    assert client.get_many([2])[0].vector is None
    page = client.page(limit=3, where={"label": "b"}, with_vectors=True)
    assert [item.id for item in page.items] == [1, 3, 5]
    assert len(page.items[0].vector) == 32
    assert [item.id for item in client.page(page.next, 3, label="b").items] == [7]
    assert (client.count(), client.count(where={"label": {"prefix": "b"}})) == (8, 4)


def test_earlier_names_still_answer(running):
    """Scripts of the last version go on: the path of indexes on fields, and figures of a collection."""
    path, field = f"{running.address}/v1/payload-indexes", {"field": "metadata.year"}
    made = httpx.post(path, json=field).raise_for_status().json()
    assert made == httpx.post(f"{running.address}/v1/field-indexes", json=field).json()
    assert made["payload_indexes"] == made["field_indexes"] == ["label", "metadata.year"]
    for earlier, name in (("sequence", "lsn"), ("head", "memtable"), ("snapshot_sequence", "flushed_lsn")):
        assert made[earlier] == made[name] is not None
    assert httpx.delete(path, params=field).raise_for_status().json()["field_indexes"] == ["label"]
    methods = httpx.get(f"{running.address}/v1/openapi.json").json()["paths"]["/v1/payload-indexes"]
    assert all(operation["deprecated"] for operation in methods.values())


def test_collections_come_and_go(client):
    client.create_collection("spare", dim=4)
    assert client.stats(collection="spare").dim == 4
    stats = client.create_field_index("metadata.year", collection="spare")
    assert "metadata.year" in stats.field_indexes
    assert client.create_field_index("metadata.year", collection="spare") == stats
    assert client.drop_field_index('metadata."year"', collection="spare").field_indexes == ["label"]
    made = client.create_payload_index("metadata.year", collection="spare")
    assert made.field_indexes == ["label", "metadata.year"]
    assert client.drop_payload_index("metadata.year", collection="spare").field_indexes == ["label"]
    with pytest.raises(ServiceError) as error:
        client.create_field_index('metadata.x" --')
    assert error.value.code == "filter"
    assert [one.name for one in client.delete_collection("spare").collections] == ["default"]


def test_it_is_filled_listed_and_thinned_out(start, bundle):
    names = ["star/0.jpg", "star/é 1.jpg", "ring/2.jpg"]
    vectors = np.eye(bundle.dim, dtype=np.float32)
    with start().client() as client:
        remote = RemoteCollection(client, "default", bundle.dim, bundle.fingerprint)
        items = [Item(name, vector, name[:4]) for name, vector in zip(names, vectors, strict=False)]
        assert remote.upsert(items, fingerprint=bundle.fingerprint) == 3
        assert sorted(item.id for item in remote.scan()) == sorted(names)
        assert remote.delete([names[1], "none"]) == 1
        assert [item is None for item in remote.get(names)] == [False, True, False]
        assert remote.count() == 2


def test_another_models_collection_is_refused(start, bundle):
    with start().client() as client:
        RemoteCollection(client, "new", bundle.dim, bundle.fingerprint)
        with pytest.raises(ServiceError, match="name a new collection"):
            RemoteCollection(client, "new", bundle.dim, "another")
