"""Search over HTTP, with an exact scan in numpy as the naive twin."""

import json

import httpx
import numpy as np
import pytest


@pytest.fixture(scope="module")
def stored(running, picture):
    """Thirty images in the service: ids 0…29, labels a, b, c."""
    with running.client() as client:
        for seed in range(30):
            client.upsert(
                picture(seed), seed, label="abc"[seed % 3], metadata={"seed": seed, "even": seed % 2 == 0}
            )
    return running


def naive(bundle, picture, query, keep=lambda _seed: True, k=10):
    """Ids of the most similar images by a plain matrix product."""
    seeds = [seed for seed in range(30) if keep(seed)]
    similarities = bundle.embed([picture(seed) for seed in seeds]) @ query
    return [seeds[at] for at in np.argsort(-similarities, kind="stable")[:k]]


def test_image_search_equals_the_naive_scan(stored, bundle, picture):
    with stored.client() as client:
        for seed in (3, 77):
            answer = client.search_image(picture(seed), k=7)
            (query,) = bundle.embed([picture(seed)])
            assert [hit.id for hit in answer.hits] == naive(bundle, picture, query, k=7)
    assert answer.plan.candidates in (30, None)
    assert set(answer.timings_ms) == {"decode", "network", "search", "total"}
    assert answer.timings_ms["total"] >= answer.timings_ms["network"]


def test_a_stored_image_finds_itself_first(stored, picture):
    with stored.client() as client:
        first = client.search_image(picture(5), k=1).hits[0]
    assert first.id == 5
    assert first.similarity == pytest.approx(1.0, abs=1e-5)
    assert (first.label, first.metadata) == ("c", {"seed": 5, "even": False})


def test_label_and_filter_restrict_the_neighbours(stored, bundle, picture):
    (query,) = bundle.embed([picture(1)])
    with stored.client() as client:
        by_label = client.search_image(picture(1), k=5, label="b")
        by_both = client.search_image(picture(1), k=5, label="b", where={"metadata.seed": {"gte": 15}})
    assert [hit.id for hit in by_label.hits] == naive(bundle, picture, query, lambda seed: seed % 3 == 1, 5)
    assert [hit.id for hit in by_both.hits] == naive(
        bundle, picture, query, lambda seed: seed % 3 == 1 and seed >= 15, 5
    )


def test_exclude_threshold_and_grouping(stored, picture):
    with stored.client() as client:
        assert 4 not in [hit.id for hit in client.search_image(picture(4), exclude=[4]).hits]
        assert [hit.id for hit in client.search_image(picture(4), min_similarity=0.99999).hits] == [4]
        assert len(client.search_image(picture(4), group_by="label").hits) == 3


def test_vector_search_equals_image_search(stored, bundle, picture):
    (query,) = bundle.embed([picture(9)])
    with stored.client() as client:
        by_image = client.search_image(picture(9), k=5)
        by_vector = client.search_vector(query, k=5, fingerprint=bundle.fingerprint)
    assert [hit.id for hit in by_image.hits] == [hit.id for hit in by_vector.hits]


def test_several_vectors_give_one_list_each(stored, bundle, picture):
    queries = bundle.embed([picture(2), picture(8)])
    answer = httpx.post(
        f"{stored.address}/v1/search/vector", json={"vectors": queries.tolist(), "k": 1}
    ).json()
    assert [result["hits"][0]["id"] for result in answer["results"]] == [2, 8]


@pytest.mark.parametrize("count", [1, 3])
def test_raw_search_gives_ids_and_similarities(stored, bundle, picture, count):
    queries = bundle.embed([picture(seed) for seed in range(count)])
    answer = httpx.post(f"{stored.address}/v1/raw/search?k=4", content=queries.astype("<f4").tobytes()).json()
    lists = [answer["ids"]] if count == 1 else answer["ids"]
    assert lists == [naive(bundle, picture, query, k=4) for query in queries]


def test_similar_to_an_item_leaves_itself_out(stored, bundle, picture):
    (query,) = bundle.embed([picture(6)])
    with stored.client() as client:
        answer = client.search_by_id(6, k=5)
    assert [hit.id for hit in answer.hits] == naive(bundle, picture, query, lambda seed: seed != 6, 5)


def test_examples_positive_and_negative(stored):
    body = {"positives": [1, 2], "negatives": [3], "k": 30}
    answer = httpx.post(f"{stored.address}/v1/search/examples", json=body).json()
    assert len(answer["hits"]) == 27
    assert not {1, 2, 3} & {hit["id"] for hit in answer["hits"]}


def test_batch_of_images_names_the_broken_one(stored, picture):
    with stored.client() as client:
        answer = client.search_images([picture(1), b"no image", picture(2)], k=1)
    first, broken, last = answer.results
    assert (first.hits[0].id, last.hits[0].id) == (1, 2)
    assert broken.hits is None
    assert "not an image" in broken.error


def test_the_image_may_be_the_whole_body(stored, picture):
    answer = httpx.post(
        f"{stored.address}/v1/search?k=1", content=picture(3), headers={"content-type": "image/png"}
    ).json()
    assert answer["hits"][0]["id"] == 3


def test_options_come_from_form_or_query_and_the_form_wins(stored, picture):
    answer = httpx.post(
        f"{stored.address}/v1/search?k=9&label=a",
        files={"image": picture(0)},
        data={"k": "2", "filter": json.dumps({"metadata.even": True})},
    ).json()
    assert len(answer["hits"]) == 2
    assert {hit["label"] for hit in answer["hits"]} == {"a"}
    assert all(hit["metadata"]["even"] for hit in answer["hits"])


def test_concurrent_searches_share_batches_and_stay_apart(stored, bundle, picture):
    from concurrent.futures import ThreadPoolExecutor

    with stored.client() as client, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda seed: client.search_image(picture(seed), k=1), list(range(30)) * 3))
    assert [answer.hits[0].id for answer in answers] == list(range(30)) * 3
