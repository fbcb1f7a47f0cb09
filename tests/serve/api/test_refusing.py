"""Images under overload: refused when their headers are here, without harm to the connection."""

import asyncio
import json
import logging
import re
import time

import httpx
import numpy as np
import pytest

from serve.admission import Admission
from serve.api import refusing
from serve.observability import JsonFormatter
from serve.problems import Problem

SEARCH = "/v1/search"
QUERY = np.random.default_rng(7).standard_normal(32).astype("<f4").tobytes()


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


@pytest.mark.parametrize(
    "path", ["/v1/search", "/v1/search/batch?k=5", "/v1/embed", "/v1/verify", "/v1/items"]
)
def test_the_answer_comes_before_the_body(wire, path):
    answer = wire.ask(head_of(wire, 1000, "x-request-id: mine-7\r\n", path))
    assert answer.status_code == 429
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine-7"
    assert answer.json()["type"] == "urn:kindred:problem:overloaded"
    wire.send(bytes(1000))
    assert healthy(wire)


def test_both_gates_say_the_same(wire, stored):
    """Behind another request the application refuses, as the connection's answers have an order."""
    first = wire.request("/v1/search/vector", json.dumps({"vector": [1.0] * 32, "k": 1}).encode())
    wire.send(first[:30], first[30:] + head_of(wire, 3) + b"abc")
    assert wire.answer().status_code == 200
    behind = wire.answer()
    alone = wire.ask(head_of(wire, 3) + b"abc")
    assert behind.status_code == alone.status_code == 429
    told = [{**answer.json(), "request_id": None} for answer in (behind, alone)]
    assert told[0] == told[1]
    assert sorted(behind.headers) == sorted(alone.headers)


def test_a_dropped_body_is_no_request(wire, taken):
    inner = wire.request("/v1/raw/search", QUERY)
    wire.send(head_of(wire, 3 * len(inner)), inner, inner, inner)
    assert wire.answer().status_code == 429
    assert healthy(wire)
    assert taken == []
    assert wire.ask(inner).status_code == 200
    assert taken == ["wire"]


def test_several_requests_at_once_are_answered_in_order(wire):
    get = f"GET /healthz HTTP/1.1\r\nhost: {wire.host}\r\n\r\n".encode()
    upload = head_of(wire, 4) + b"body"
    wire.send(upload + upload + get + upload)
    assert [wire.answer().status_code for _ in range(4)] == [429, 429, 200, 429]
    assert healthy(wire)


@pytest.mark.parametrize(
    ("lines", "version"),
    [
        ("expect: 100-continue\r\n", "1.1"),
        ("connection: close\r\n", "1.1"),
        ("", "1.0"),
    ],
)
def test_the_last_answer_of_a_connection(wire, lines, version):
    wire.send(head_of(wire, 1000, lines, version=version))
    answer = wire.answer()
    assert answer.status_code == 429
    assert answer.headers["connection"] == "close"
    wire.send(bytes(600), b"neither a body nor a request")
    assert wire.rest() == b""


def test_a_body_of_unknown_length_ends_the_connection(wire):
    wire.send(
        f"POST {SEARCH} HTTP/1.1\r\nhost: {wire.host}\r\ntransfer-encoding: chunked\r\n\r\nno chunk".encode()
    )
    answer = wire.answer()
    assert (answer.status_code, answer.headers["connection"]) == (429, "close")
    assert wire.rest() == b""


def test_who_sends_a_long_body_first_and_reads_then_still_hears_it(wire):
    size = 8 * refusing._DROPPED_BYTES
    wire.socket.sendall(head_of(wire, size) + bytes(size))
    answer = wire.answer()
    assert (answer.status_code, answer.headers["connection"]) == (429, "close")
    assert wire.rest() == b""


def test_nobody_is_listened_to_for_ever(start, connect, overload, monkeypatch):
    monkeypatch.setattr(refusing, "_LINGER_SECONDS", 0.2)
    running = start(body_seconds=0.3, max_body_bytes=2**21)
    overload(running)
    for length, sent in ((2000, b"x"), (2**21, b"x"), (2**21, bytes(2**22))):
        wire = connect(running.address)
        wire.send(head_of(wire, length))
        assert wire.answer().status_code == 429
        wire.socket.settimeout(5)
        started = time.perf_counter()
        with pytest.raises(ConnectionError):
            send_on_and_on(wire, sent)
        assert time.perf_counter() - started < 3


def send_on_and_on(wire, body):
    """After the answers' end, too: the whole connection is to end, not the server's sending side alone."""
    wire.send(body)
    assert wire.rest() == b""
    while True:
        wire.send(b"x")
        time.sleep(0.02)


def test_refusals_are_counted_each_and_logged_together(wire, stored, caplog):
    def counted():
        text = httpx.get(f"{stored.address}/metrics").text
        found = re.search(
            r'kindred_requests_total{method="POST",route="/v1/search",status="429"} (\d+)', text
        )
        return int(found[1]) if found else 0

    before = counted()
    with caplog.at_level(logging.INFO, "kindred.serve"):
        time.sleep(refusing._LOG_SECONDS + 0.1)
        caplog.clear()
        for _ in range(5):
            assert wire.ask(head_of(wire, 3) + b"abc").status_code == 429
        time.sleep(refusing._LOG_SECONDS + 0.1)
    assert counted() == before + 5
    (line,) = [
        json.loads(JsonFormatter().format(entry)) for entry in caplog.records if "429" in entry.message
    ]
    assert (line["route"], line["status"], line["count"]) == (SEARCH, 429, 5)


def test_overload_comes_before_keys_but_not_before_other_sites(start, connect, overload):
    running = start(read_key="r" * 20, cors_origins=("https://shop.example",))
    overload(running)
    wire = connect(running.address)
    assert wire.ask(head_of(wire, 3) + b"abc").status_code == 429
    own = wire.ask(head_of(wire, 3, f"x-api-key: {20 * 'r'}\r\norigin: https://shop.example\r\n") + b"abc")
    assert own.status_code == 429
    assert own.headers["access-control-allow-origin"] == "https://shop.example"


def test_vectors_and_reading_are_not_refused(wire, stored):
    assert wire.ask(wire.request("/v1/raw/search", QUERY)).status_code == 200
    assert httpx.get(f"{stored.address}/v1/items").status_code == 200


def test_a_free_place_is_given_once_among_requests_that_come_together():
    async def turn():
        admission = Admission(10, always=1)
        admission.seconds_per_image = 1.0
        loop = asyncio.get_running_loop()
        assert admission.refusal_of_arrival() is None
        admission.expect(loop)
        assert isinstance(admission.refusal_of_arrival(), Problem)
        with admission.admit():  # the one that was expected
            await asyncio.sleep(0)
            assert isinstance(admission.refusal_of_arrival(), Problem)
        assert admission.refusal_of_arrival() is None

    asyncio.run(turn())
