"""What every request passes: hosts and origins, early refusals, logs; and raw searches, the quickest."""

import json
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from models.errors import InputError
from serve.api import guard, health
from serve.observability import JsonFormatter, configure_logging
from serve.settings import Settings
from serve.store.catalogue import Catalogue

RAW, JSON, SEARCH = "/v1/raw/search", "/v1/search/vector", "/v1/search"
QUERIES = np.random.default_rng(7).standard_normal((3, 32)).astype("<f4")
QUERY = QUERIES[0].tobytes()


@pytest.fixture
def overload(monkeypatch):
    """Fills a service: one image is inside, and takes long."""

    def fill(running):
        monkeypatch.setattr(running.service.admission, "inside", 1)
        monkeypatch.setattr(running.service.admission, "seconds_per_image", 10.0)

    return fill


@pytest.fixture
def wire(stored, connect, overload):
    """A connection to a service that is overloaded."""
    overload(stored)
    return connect()


def head_of(wire, length, lines="", path=SEARCH, version="1.1"):
    return (
        f"POST {path} HTTP/{version}\r\nhost: {wire.host}\r\ncontent-type: image/png\r\n"
        f"content-length: {length}\r\n{lines}\r\n"
    ).encode()


def healthy(wire):
    return wire.ask(f"GET /healthz HTTP/1.1\r\nhost: {wire.host}\r\n\r\n".encode()).status_code == 200


@pytest.mark.parametrize("query", ["", "?k=3", "?collection=default&k=2"])
@pytest.mark.parametrize("count", [1, 3])
def test_raw_and_json_searches_agree(stored, query, count):
    raw = httpx.post(f"{stored.address}{RAW}{query}", content=QUERIES[:count].tobytes()).json()
    k = 10 if not query else int(query[-1])
    vectors = QUERIES[:count].tolist()
    body = {"k": k, **({"vector": vectors[0]} if count == 1 else {"vectors": vectors})}
    answer = httpx.post(f"{stored.address}{JSON}", json=body).json()
    lists = [answer["hits"]] if count == 1 else [result["hits"] for result in answer["results"]]
    ids = [[hit["id"] for hit in hits] for hits in lists]
    similarities = [[hit["similarity"] for hit in hits] for hits in lists]
    assert raw["ids"] == (ids[0] if count == 1 else ids)
    np.testing.assert_allclose(np.ravel(raw["similarities"]), np.ravel(similarities), atol=1e-5)
    assert len(ids[0]) == k


@pytest.mark.parametrize(
    ("path", "body", "query", "status"),
    [
        (RAW, b"", "", 422),
        (RAW, b"x" * 127, "", 422),
        (RAW, np.full(32, np.nan, "<f4").tobytes(), "", 422),
        (RAW, np.zeros(32, "<f4").tobytes(), "", 422),
        (RAW, QUERY, "?k=0", 422),
        (RAW, QUERY, "?k=1000000", 422),
        (RAW, QUERY, "?collection=nowhere", 404),
        (RAW, QUERY, "?surplus=1", 422),
        (JSON, b"{", "", 400),
        (JSON, b"{}", "", 422),
        (JSON, b'{"vector": [1, 2]}', "", 422),
        (JSON, b'{"vector": [1e999]}', "", 422),
        (JSON, b'{"vector": [1], "surplus": 1}', "", 422),
        (JSON, b"[" + b"0," * 2_000_000 + b"0]", "", 413),
    ],
)
def test_bad_searches_are_refused(stored, path, body, query, status):
    headers = {"content-type": "application/json"}
    problem = httpx.post(f"{stored.address}{path}{query}", content=body, headers=headers)
    assert problem.json()["status"] == problem.status_code == status


def test_a_body_in_pieces_is_put_together(stored):
    whole = httpx.post(f"{stored.address}{RAW}", content=QUERY).json()
    pieces = httpx.post(f"{stored.address}{RAW}", content=iter([QUERY[:50], QUERY[50:]]))
    assert pieces.json() == whole


def test_the_effort_of_a_search_is_checked(stored):
    body = {"vector": QUERIES[0].tolist(), "effort": 32}
    assert httpx.post(f"{stored.address}{JSON}", json=body).status_code == 200
    for wrong in (0, 70_000, "far"):
        assert httpx.post(f"{stored.address}{JSON}", json={**body, "effort": wrong}).status_code == 422


def counted(running, route, status):
    text = httpx.get(f"{running.address}/metrics").text
    found = re.search(
        rf'kindred_requests_total{{method="POST",route="{route}",status="{status}"}} (\d+)', text
    )
    return int(found[1]) if found else 0


def test_requests_are_counted_once(stored):
    before = counted(stored, RAW, 200)
    answer = httpx.post(f"{stored.address}{RAW}", content=QUERY, headers={"x-request-id": "me"})
    assert answer.headers["x-request-id"] == "me"
    assert counted(stored, RAW, 200) == before + 1


@pytest.mark.parametrize("path", ["/", "/docs", "/healthz", "/readyz", "/v1/stats"])
def test_head_is_get_without_a_body(stored, path):
    answer = httpx.head(f"{stored.address}{path}")
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:1.evil", "127.0.0.1@evil", "127.0.0.1:x", "::1"])
def test_foreign_hosts_are_refused(stored, host):
    assert httpx.post(f"{stored.address}{RAW}", content=QUERY, headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "host", ["localhost", "localhost.", "LOCALHOST:1", "127.0.0.1:99", "[::1]:80", "[::1]"]
)
def test_this_machines_names_are_taken(stored, host):
    assert httpx.post(f"{stored.address}{RAW}", content=QUERY, headers={"host": host}).status_code == 200


def test_a_request_names_one_host(stored, connect):
    wire = connect()
    request = wire.request(RAW, QUERY).replace(b"\r\n", b"\r\nhost: evil.example\r\n", 1)
    assert wire.ask(request).status_code == 400


def test_pages_behind_a_proxy_are_no_foreign_ones(start):
    running = start(allowed_hosts=("shop.example",))

    def status(**headers):
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(f"{running.address}{RAW}", content=QUERY, headers=fields).status_code

    assert status(origin="https://shop.example") == 200
    assert status(origin="https://evil.example") == 403
    assert status(origin="https://evil.example", sec_fetch_site="cross-site") == 403
    assert status(origin="https://other.example", sec_fetch_site="same-origin") == 200


@pytest.mark.parametrize("origin", ["null", "http://[", "http://[::1", "http://a:b", "\\", "", "é"])
def test_an_origin_that_is_none_is_a_foreign_one(stored, origin):
    headers = {"origin": origin.encode("latin-1")}
    assert httpx.post(f"{stored.address}{RAW}", content=QUERY, headers=headers).status_code == 403


@pytest.mark.parametrize("name", ["Photos.Example", "photos.example:8443", "photos.example."])
def test_allowed_names_are_compared_as_names(start, name):
    running = start(allowed_hosts=(name, "::2"), cors_origins=("https://Shop.Example/",))
    for host in ("photos.example", "PHOTOS.example:80", "[::2]:80"):
        assert httpx.get(f"{running.address}/healthz", headers={"host": host}).status_code == 200
    headers = {"origin": "https://shop.example"}
    answer = httpx.post(f"{running.address}{RAW}", content=QUERY, headers=headers)
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"


@pytest.mark.parametrize(
    "setting",
    [{"allowed_hosts": ["https://a.example"]}, {"allowed_hosts": ["a/b"]}, {"cors_origins": ["a.example"]}],
)
def test_what_is_no_name_is_no_setting(setting):
    with pytest.raises(InputError, match=r"such as (https://)?photos\.example"):
        Settings.read(**setting)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/items", {"GET", "HEAD", "POST"}),
        ("OPTIONS", "/v1/items", {"GET", "HEAD", "POST"}),
        ("PUT", "/v1/items/x", {"GET", "HEAD", "PATCH", "DELETE"}),
        ("PUT", "/v1/items/vectors", {"POST"}),
        ("PUT", "/v1/items/delete", {"POST"}),
        ("PUT", "/v1/field-indexes", {"POST", "DELETE"}),
    ],
)
def test_a_wrong_method_hears_all_right_ones(stored, method, path, allowed):
    answer = httpx.request(method, f"{stored.address}{path}")
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == allowed


def test_a_slash_at_the_end_leads_to_the_path_without_it(start):
    running = start(root_path="/kindred")
    answer = httpx.get(f"{running.address}/v1/stats/?collection=default")
    assert (answer.status_code, answer.headers["location"]) == (307, "../stats?collection=default")
    assert httpx.get(f"{running.address}/docs/", follow_redirects=True).status_code == 200
    assert httpx.get(f"{running.address}//evil.example/").headers["location"] == "../evil.example"
    query = httpx.post(f"{running.address}{RAW}/", content=QUERY, follow_redirects=True)
    assert query.url.path == RAW


@pytest.mark.parametrize("encoding", ["", "identity", "Identity"])
def test_a_body_that_is_not_encoded_is_taken(stored, encoding):
    headers = {"content-encoding": encoding}
    assert httpx.post(f"{stored.address}{RAW}", content=QUERY, headers=headers).status_code == 200


@pytest.mark.parametrize("upgrade", ["upgrade: h2c", "Upgrade: h2c", "UPGRADE: websocket"])
@pytest.mark.parametrize("apart", [True, False])
def test_who_asks_for_an_upgrade_loses_no_body(stored, connect, upgrade, apart):
    """As Java's HttpClient does with its first request."""
    wire = connect()
    extra, value = upgrade.split(": ")
    request = wire.request(RAW, QUERY, {"connection": "Upgrade, HTTP2-Settings", extra: value})
    assert len(wire.ask(*([request[:-128], request[-128:]] if apart else [request])).json()["ids"]) == 10
    assert healthy(wire)


@pytest.mark.parametrize("whole", [True, False])
def test_a_refused_body_of_unknown_length_ends_no_connection(stored, connect, whole):
    wire = connect()
    head = f"POST /v1/nothing HTTP/1.1\r\nhost: {wire.host}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    body = (b"c350\r\n" + bytes(50_000) + b"\r\n") * 20 + b"0\r\n\r\n"
    for _ in range(2):
        assert wire.ask(*([head + body] if whole else [head, body])).status_code == 404
    assert healthy(wire)


def test_the_head_after_such_a_body_is_limited(stored, connect):
    wire = connect()
    request = f"GET /healthz HTTP/1.1\r\nhost: {wire.host}\r\n".encode()
    # The second request's head begins together with the first one, and does not end.
    assert wire.ask(request + b"\r\n" + request).status_code == 200
    wire.send(b"x-more: " + b"a" * 100_000)
    assert wire.answer().status_code == 431


def test_malformed_forms_write_no_lines_of_their_own():
    configure_logging("INFO", "json")
    assert not logging.getLogger("python_multipart.multipart").isEnabledFor(logging.WARNING)


def test_an_encoded_body_is_refused_by_name(stored):
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    answer = httpx.post(f"{stored.address}{JSON}", content=b"\x1f\x8b", headers=headers)
    assert answer.status_code == 415
    assert "gzip" in answer.json()["detail"]


def test_a_file_with_the_extended_name_alone_is_a_file(stored, picture):
    disposition = b"content-disposition: form-data; name=\"image\"; filename*=UTF-8''a.png\r\n\r\n"
    body = b"--x\r\n" + disposition + picture() + b"\r\n--x--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert httpx.post(f"{stored.address}{SEARCH}", content=body, headers=headers).status_code == 200


def test_a_crowd_of_parts_is_refused(stored):
    part = b"--x\r\ncontent-disposition: form-data; name=a\r\n\r\n\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{stored.address}{SEARCH}", content=part * 20_000 + b"--x--", headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:kindred:problem:too-many-parts")


def test_errors_do_not_tell_where_files_lie(start, tmp_path):
    running = start()
    answer = httpx.post(f"{running.address}/v1/reload", json={})  # there is no bundle in the folder
    assert answer.status_code == 422
    assert str(tmp_path) not in answer.text


@pytest.mark.parametrize(
    "path", ["/v1/search", "/v1/search/batch?k=5", "/v1/embed", "/v1/verify", "/v1/items"]
)
def test_overload_is_told_before_the_body(wire, path):
    answer = wire.ask(head_of(wire, 100_000, "x-request-id: mine-7\r\n", path))
    assert answer.status_code == 429
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine-7"
    assert answer.json()["type"] == "urn:kindred:problem:overloaded"
    wire.send(bytes(100_000))
    assert healthy(wire)


def test_a_dropped_body_is_no_request(wire, stored):
    before = counted(stored, RAW, 200)
    inner = wire.request(RAW, QUERY)
    wire.send(head_of(wire, 3 * len(inner)), inner, inner, inner)
    assert wire.answer().status_code == 429
    assert healthy(wire)
    assert counted(stored, RAW, 200) == before
    assert wire.ask(inner).status_code == 200


def test_several_requests_at_once_are_answered_in_order(wire):
    get = f"GET /healthz HTTP/1.1\r\nhost: {wire.host}\r\n\r\n".encode()
    upload = head_of(wire, 4) + b"body"
    wire.send(upload + upload + get + upload)
    assert [wire.answer().status_code for _ in range(4)] == [429, 429, 200, 429]
    assert healthy(wire)


def test_who_sends_a_long_body_first_and_reads_then_still_hears_it(wire):
    size = 2**23
    wire.socket.sendall(head_of(wire, size) + bytes(size))
    assert wire.answer().status_code == 429
    assert healthy(wire)


def test_refusals_are_counted_each_and_logged_together(wire, stored, caplog):
    before = counted(stored, SEARCH, 429)
    with caplog.at_level(logging.INFO, "kindred.serve"):
        time.sleep(guard._REPORT_SECONDS + 0.1)
        caplog.clear()
        for _ in range(5):
            assert wire.ask(head_of(wire, 3) + b"abc").status_code == 429
        time.sleep(guard._REPORT_SECONDS + 0.1)
    assert counted(stored, SEARCH, 429) == before + 5
    (line,) = [
        json.loads(JsonFormatter().format(entry)) for entry in caplog.records if "refused" in entry.message
    ]
    assert (line["status"], line["count"]) == (429, 5)


def test_a_page_of_an_allowed_site_can_read_a_refusal(start, connect, overload):
    running = start(cors_origins=("https://shop.example",))
    overload(running)
    wire = connect(running.address)
    answer = wire.ask(head_of(wire, 3, "origin: https://shop.example\r\n") + b"abc")
    assert answer.status_code == 429
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"


def test_vectors_and_reading_are_not_refused(wire, stored):
    assert wire.ask(wire.request(RAW, QUERY)).status_code == 200
    assert httpx.get(f"{stored.address}/v1/items").status_code == 200


def test_keys_are_exchanged_while_the_service_runs(start, tmp_path, monkeypatch):
    monkeypatch.setattr("serve.auth._FRESH_SECONDS", 0.0)
    keys = tmp_path / "keys"
    keys.write_text("read old\nwrite pen\n")
    running = start(keys_file=keys)

    def status(key):
        return httpx.get(f"{running.address}/v1/stats", headers={"x-api-key": key}).status_code

    assert [status(key) for key in ("old", "new", "pen", "none")] == [200, 403, 200, 403]
    keys.write_text("# both hold for a while\nread old\nread new\nwrite pen\n")
    assert [status(key) for key in ("old", "new")] == [200, 200]
    keys.write_text("read new\nwrite pen\n")
    assert [status(key) for key in ("old", "new")] == [403, 200]
    keys.write_text("nonsense\n")  # a slip of the pen opens nothing and closes nothing
    assert [status(key) for key in ("old", "new")] == [403, 200]
    keys.unlink()
    assert [status(key) for key in ("old", "new")] == [403, 200]


def test_only_open_collections_are_looked_into(start, tmp_path, bundle):
    with Catalogue(tmp_path / "store") as catalogue:
        catalogue.create("default", bundle.dim, bundle.fingerprint)
        catalogue.create("sleeping", 8)
        catalogue.create("broken", 8)
    (tmp_path / "store/collections/broken/items.db").write_bytes(b"no database" * 1000)
    running = start()
    assert httpx.get(f"{running.address}/metrics").status_code == 200
    listed = httpx.get(f"{running.address}/v1/collections").json()["collections"]
    assert {one["name"]: one["state"] for one in listed} == {
        "broken": "closed", "default": "open", "sleeping": "closed",
    }  # fmt: skip
    assert [*running.service.catalogue.open_stores()] == ["default"]
    assert httpx.get(f"{running.address}/v1/stats?collection=broken").status_code == 500
    assert httpx.get(f"{running.address}/v1/stats?collection=sleeping").json()["items"] == 0
    assert httpx.get(f"{running.address}/metrics").status_code == 200


def test_opening_a_collection_holds_nobody_up_and_happens_once(start, monkeypatch):
    running = start()
    with running.client() as client:
        client.create_collection("slow", dim=32)
    collections = running.service.catalogue
    opened, let_go, default = [], threading.Event(), running.store
    original, was_opened = collections.collection, collections.opened
    monkeypatch.setattr(
        collections,
        "opened",
        lambda name: default if name != "slow" else was_opened(name) if let_go.is_set() else None,
    )
    monkeypatch.setattr(
        collections, "collection", lambda name: (opened.append(name), let_go.wait(60), original(name))[-1]
    )
    with ThreadPoolExecutor(8) as pool:
        url = f"{running.address}{RAW}?collection=slow"
        waiting = [pool.submit(httpx.post, url, content=QUERY, timeout=60) for _ in range(6)]
        while not opened:
            time.sleep(0.01)
        assert httpx.get(f"{running.address}/healthz").status_code == 200
        assert httpx.post(f"{running.address}{RAW}", content=QUERY).status_code == 200
        assert not any(future.done() for future in waiting)
        let_go.set()
        assert {future.result().status_code for future in waiting} == {200}
    assert opened == ["slow"]


def test_ready_is_asked_once_a_second(start, monkeypatch):
    monkeypatch.setattr(health, "_FRESH_SECONDS", 3600.0)
    running = start()
    calls = []
    embed = running.service.pipeline.embed
    monkeypatch.setattr(
        running.service.pipeline, "embed", lambda content: (calls.append(1), embed(content))[1]
    )
    with ThreadPoolExecutor(16) as pool:
        answers = [*pool.map(lambda _: httpx.get(f"{running.address}/readyz").status_code, range(40))]
    assert set(answers) == {200}
    assert len(calls) == 1
