"""The short ways of vector searches and the long way through the application give the same answers."""

import json

import httpx
import numpy as np
import pytest

RAW, JSON = "/v1/raw/search", "/v1/search/vector"


@pytest.fixture
def ways(stored, connect, taken):
    """Asks on each way: in one piece, in two, and with what browsers add, which no short way may take."""

    def ask(path, content, headers=None, query=""):
        taken.clear()
        wire = connect()
        content = content.encode() if isinstance(content, str) else content
        request = wire.request(f"{path}{query}", content, headers)
        whole = wire.ask(request)
        pieces = wire.ask(request[:20], request[20:])
        went = list(taken)
        long = wire.ask(
            wire.request(f"{path}{query}", content, {**(headers or {}), "origin": stored.address})
        )
        assert taken == went, "a page's request took a short way"
        assert whole.status_code == pieces.status_code == long.status_code
        assert len(went) == (2 if long.status_code == 200 else 0)
        same(whole, pieces)
        return whole, long

    return ask


def same(short, long):
    """Both answers say the same, but for the last digit: a search in a batch adds in another order."""
    one, other = short.json(), long.json()
    for answer in (one, other):
        answer.pop("timings_ms", None)
        answer.pop("request_id", None)
    assert rounded(one) == rounded(other)
    assert short.headers["content-type"] == long.headers["content-type"]
    assert short.headers["x-request-id"] != long.headers["x-request-id"]
    return one


def rounded(value):
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, 5) if isinstance(value, float) else value


def vectors(count=1, seed=7):
    return np.random.default_rng(seed).standard_normal((count, 32)).astype("<f4")


@pytest.mark.parametrize("query", ["", "?k=3", "?collection=default&k=2"])
@pytest.mark.parametrize("count", [1, 3])
def test_raw_searches_agree(ways, query, count):
    answer = same(*ways(RAW, vectors(count).tobytes(), query=query))
    assert len(answer["ids"]) == (10 if not query else int(query[-1])) if count == 1 else count


@pytest.mark.parametrize(
    "options",
    [{}, {"k": 3, "label": "a"}, {"exclude": [1, "item 2"]}, {"group_by": "label"}, {"exact": True}],
)
def test_json_searches_agree(ways, options):
    body = json.dumps({"vector": vectors()[0].tolist(), **options})
    assert same(*ways(JSON, body, {"content-type": "application/json"}))["hits"]
    several = json.dumps({"vectors": vectors(3).tolist(), **options})
    assert len(same(*ways(JSON, several, {"content-type": "application/json"}))["results"]) == 3


@pytest.mark.parametrize(
    ("path", "body", "query", "status"),
    [
        (RAW, b"", "", 422),
        (RAW, b"x" * 127, "", 422),
        (RAW, np.full(32, np.nan, "<f4").tobytes(), "", 422),
        (RAW, np.zeros(32, "<f4").tobytes(), "", 422),
        (RAW, vectors().tobytes(), "?k=0", 422),
        (RAW, vectors().tobytes(), "?k=1000000", 422),
        (RAW, vectors().tobytes(), "?collection=nowhere", 404),
        (JSON, b"{", "", 400),
        (JSON, b"{}", "", 422),
        (JSON, b'{"vector": [1, 2]}', "", 422),
        (JSON, b'{"vector": [1e999]}', "", 422),
        (JSON, b'{"vector": [1], "surplus": 1}', "", 422),
    ],
)
def test_refusals_agree(ways, path, body, query, status):
    problem = same(*ways(path, body, {"content-type": "application/json"}, query))
    assert problem["status"] == status


def test_a_body_in_pieces_is_put_together(stored):
    query = vectors()[0].tobytes()
    whole = httpx.post(f"{stored.address}{RAW}", content=query).json()
    pieces = httpx.post(f"{stored.address}{RAW}", content=iter([query[:50], query[50:]]))
    assert pieces.json() == whole


def test_the_keeper_stands_at_the_short_way_too(start):
    guarded = start(read_key="r" * 20, write_key="w" * 20, max_body_bytes=1024)
    url, query = f"{guarded.address}{RAW}", vectors().tobytes()
    assert httpx.post(url, content=query).status_code == 401
    assert httpx.post(url, content=query, headers={"x-api-key": "wrong"}).status_code == 403
    assert httpx.post(url, content=query, headers={"x-api-key": "r" * 20}).status_code == 200
    assert httpx.post(url, content=query, headers={"authorization": "Bearer " + "w" * 20}).status_code == 200
    assert httpx.post(url, content=b"x" * 2000, headers={"x-api-key": "r" * 20}).status_code == 413


def test_foreign_hosts_and_origins_are_refused(stored):
    url, query = f"{stored.address}{RAW}", vectors().tobytes()
    assert httpx.post(url, content=query, headers={"host": "evil.example"}).status_code == 421
    assert httpx.post(url, content=query, headers={"origin": "http://evil.example"}).status_code == 403


def test_requests_are_counted_once(stored):
    def count():
        lines = httpx.get(f"{stored.address}/metrics").text.splitlines()
        key = 'kindred_requests_total{method="POST",route="/v1/raw/search",status="200"}'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(key))

    before = count()
    answer = httpx.post(f"{stored.address}{RAW}", content=vectors().tobytes(), headers={"x-request-id": "me"})
    assert answer.headers["x-request-id"] == "me"
    assert count() == before + 1


def test_the_effort_of_a_search_is_checked(stored):
    body = {"vector": vectors()[0].tolist(), "effort": 32}
    assert httpx.post(f"{stored.address}{JSON}", json=body).status_code == 200
    for wrong in (0, 70_000, "far"):
        assert httpx.post(f"{stored.address}{JSON}", json={**body, "effort": wrong}).status_code == 422
