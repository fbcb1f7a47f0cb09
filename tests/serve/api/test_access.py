"""Keys, foreign hosts and sites, overload: who is let in."""

import threading

import httpx
import pytest

from models.errors import InputError
from serve.admission import Admission
from serve.client import Retries, ServiceError
from serve.problems import Problem
from serve.settings import Settings


def statuses(running, picture, key):
    """Status of a read and of a write with ``key``."""
    bearer = key.decode("latin-1") if isinstance(key, bytes) else key
    headers = {"Authorization": f"Bearer {bearer}".encode("latin-1")} if key else {}
    read = httpx.post(f"{running.address}/v1/search", files={"image": picture()}, headers=headers)
    write = httpx.post(f"{running.address}/v1/items", files={"image": picture()}, headers=headers)
    raw = httpx.post(f"{running.address}/v1/raw/search", content=b"\0\0\x80?" * 32, headers=headers)
    assert raw.status_code == read.status_code
    return read.status_code, write.status_code


@pytest.mark.parametrize(
    ("keys", "presented", "expected"),
    [
        ({}, None, (200, 201)),
        ({"write_key": "w"}, None, (200, 401)),
        ({"write_key": "w"}, "w", (200, 201)),
        ({"write_key": "w"}, "x", (200, 403)),
        ({"read_key": "r", "write_key": "w"}, None, (401, 401)),
        ({"read_key": "r", "write_key": "w"}, "r", (200, 403)),
        ({"read_key": "r", "write_key": "w"}, "w", (200, 201)),
        ({"read_key": "r", "write_key": "w"}, "rw", (403, 403)),
        ({"read_key": "r"}, "r", (200, 403)),
    ],
)
def test_keys(start, picture, keys, presented, expected):
    assert statuses(start(**keys), picture, presented) == expected


def test_keys_may_have_any_letters(start, picture):
    running = start(read_key="lé€à", write_key="schlüssel à")
    assert statuses(running, picture, "lé€à".encode()) == (200, 403)
    with running.client("schlüssel à") as client:
        assert client.upsert(picture(), "a") == "a"


def test_a_refused_write_is_refused_before_its_body(start):
    running = start(write_key="w")

    def body():
        yield b"x"
        raise AssertionError("the service asked for the body")

    with httpx.Client() as http, pytest.raises((AssertionError, httpx.TransportError)):
        http.post(f"{running.address}/v1/items", content=body())


def test_every_route_that_changes_something_wants_the_write_key(start):
    """Read from the OpenAPI document, so that a new route cannot be forgotten."""
    running = start(read_key="r", write_key="w")
    document = httpx.get(f"{running.address}/v1/openapi.json").json()
    open_to_all = {"/healthz", "/readyz"}
    reading = {"/v1/search", "/v1/search/batch", "/v1/search/vector", "/v1/search/examples"}
    reading |= {"/v1/raw/search", "/v1/embed", "/v1/verify", "/v1/items/get", "/v1/items/count"}
    for path, methods in document["paths"].items():
        for method in methods:
            url = running.address + path.replace("{item_id}", "x").replace("{name}", "x").replace(
                "{alias}", "x"
            )
            bare = httpx.request(method, url)
            read = httpx.request(method, url, headers={"X-API-Key": "r"})
            if path in open_to_all:
                assert bare.status_code == 200, path
            else:
                assert bare.status_code == 401, (method, path)
                writes = method != "get" and path not in reading
                assert (read.status_code == 403) == writes, (method, path, read.status_code)


def test_beyond_loopback_keys_are_demanded():
    Settings(host="127.0.0.1").check_exposure()
    Settings(host="::1").check_exposure()
    for options in ({}, {"read_key": "r"}, {"write_key": "w"}):
        with pytest.raises(InputError, match=r"0\.0\.0\.0"):
            Settings(host="0.0.0.0", **options).check_exposure()
    Settings(host="0.0.0.0", read_key="r", write_key="w").check_exposure()
    Settings(host="0.0.0.0", write_key="w", public_reads=True).check_exposure()
    Settings(host="0.0.0.0", allow_without_key=True).check_exposure()


def test_without_keys_foreign_hosts_are_refused(running):
    assert httpx.get(f"{running.address}/v1/items", headers={"host": "evil.example"}).status_code == 421
    assert httpx.get(f"{running.address}/v1/items", headers={"host": "localhost:1"}).status_code == 200


@pytest.mark.parametrize(
    ("options", "status"),
    [({"write_key": "w"}, 421), ({"write_key": "w", "public_reads": True}, 200), ({"read_key": "r"}, 401)],
)
def test_a_write_key_alone_does_not_show_the_data_to_foreign_hosts(start, options, status):
    address = start(**options).address
    assert httpx.get(f"{address}/v1/items", headers={"host": "evil.example"}).status_code == status


def test_other_sites_pages_change_nothing(running, picture):
    for origin, status in (("http://evil.example", 403), ("null", 403), (running.address, 200)):
        response = httpx.post(
            f"{running.address}/v1/search", files={"image": picture()}, headers={"origin": origin}
        )
        assert response.status_code == status, origin


def test_cors_is_off_unless_asked_for(running, start):
    headers = {"origin": "https://shop.example", "access-control-request-method": "POST"}
    closed = httpx.options(f"{running.address}/v1/search", headers=headers)
    assert "access-control-allow-origin" not in closed.headers
    opened = httpx.options(
        f"{start(cors_origins=('https://shop.example',)).address}/v1/search", headers=headers
    )
    assert opened.headers["access-control-allow-origin"] == "https://shop.example"


def test_overload_is_refused_from_the_headers(start, picture, monkeypatch):
    """The network is held up: a few images are let in, the rest hear 429 with Retry-After at once."""
    running = start(latency_budget_ms=50)
    let_go = threading.Event()
    forward = running.service.bundle.embed_tensor
    monkeypatch.setattr(
        running.service.bundle, "embed_tensor", lambda batch: (let_go.wait(30), forward(batch))[1]
    )
    running.service.admission.seconds_per_image = 0.05
    answers = []

    def ask():
        with running.client(retries=Retries(attempts=1)) as client:
            try:
                client.search_image(picture())
                answers.append(200)
            except ServiceError as error:
                answers.append(error.status)

    threads = [threading.Thread(target=ask) for _ in range(30)]
    for thread in threads:
        thread.start()
    while answers.count(429) < 30 - 2 * running.settings.cores():
        assert any(thread.is_alive() for thread in threads)
    refused = httpx.post(f"{running.address}/v1/search", files={"image": picture()})
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    let_go.set()
    for thread in threads:
        thread.join()
    assert set(answers) == {200, 429}
    assert running.service.admission.inside == 0
    assert httpx.get(f"{running.address}/readyz").status_code == 200


def test_the_problem_of_admission_leaves_no_trace():
    admission = Admission(10)
    admission.seconds_per_image = 1.0
    with admission.admit(3):
        assert admission.inside == 3
        with pytest.raises(Problem, match="overloaded"), admission.admit():
            pass
    assert admission.inside == 0


def test_a_batch_is_weighed_by_its_images():
    admission = Admission(100)
    admission.seconds_per_image = 0.001
    with admission.admit():
        assert admission.refusal(90) is None
        assert admission.refusal(600) is not None
    with admission.admit(600):  # nothing else is inside, and it could not do better later
        assert admission.refusal(1) is not None
