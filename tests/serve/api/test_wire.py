"""Raw searches straight from the socket: what is taken, what is left to the parser, and when it ends."""

import asyncio
import time

import numpy as np
import pytest
import uvicorn
from uvicorn.server import ServerState

from serve.api.direct import Keeper
from serve.api.refusing import Refusals
from serve.api.wire import WireProtocol
from serve.observability import RequestLog

RAW = "/v1/raw/search"
QUERY = np.random.default_rng(7).standard_normal(32).astype("<f4").tobytes()


def test_a_whole_request_takes_the_way_and_pieces_do_not(connect, taken):
    wire = connect()
    request = wire.request(RAW, QUERY)
    answers = [wire.ask(request)]
    assert taken == ["wire"]
    head = len(request) - len(QUERY)
    answers += [wire.ask(request[:cut], request[cut:]) for cut in (1, 20, head - 1, head, head + 5)]
    assert taken == ["wire"] + 4 * ["direct"]  # and a body in pieces goes the long way
    answers.append(wire.ask(request))
    assert taken[-1] == "wire"
    assert len({answer.content for answer in answers}) == 1
    assert [list(answer.headers) for answer in answers] == 7 * [list(answers[0].headers)]


def test_several_requests_at_once_are_answered_in_order(connect, taken):
    wire = connect()
    wire.send(b"".join(wire.request(f"{RAW}?k={k}", QUERY) for k in (1, 2, 3)))
    assert [len(wire.answer().json()["ids"]) for _ in range(3)] == [1, 2, 3]
    assert "wire" not in taken


def test_other_requests_on_the_connection_come_between(connect, taken):
    wire = connect()
    for _ in range(3):
        assert wire.ask(wire.request(RAW, QUERY)).status_code == 200
        assert wire.ask(b"GET /healthz HTTP/1.1\r\nhost: %s\r\n\r\n" % wire.host.encode()).status_code == 200
    assert taken == 3 * ["wire"]


def test_a_body_that_looks_like_a_request_is_a_body(connect, taken):
    wire = connect()
    inner = wire.request(RAW, QUERY)
    outer = wire.request("/v1/search/vector", inner, {"content-type": "application/json"})
    head = len(outer) - len(inner)
    assert wire.ask(outer[:head], outer[head:]).status_code == 400
    assert taken == []
    assert wire.ask(inner).status_code == 200  # the next answer is of the next request
    assert taken == ["wire"]


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"content-length: 128\r\ncontent-length: 128\r\n", 400),
        (b"content-length: 128\r\ntransfer-encoding: chunked\r\n", 400),
        (b"content-length: +128\r\n", 400),
        (b"content-length : 128\r\n", 400),
        (b"content-length: " + 5000 * b"1" + b"\r\n", 400),
        (b"content-length: 128\r\nexpect: 100-continue\r\n", 100),
        (b"content-length: 128\r\nx-long: a\r\n b\r\n", None),
        (b"content-length: 128\r\nx-odd: \xff\r\n", 200),
        (b"content-length: 128\r\nconnection: close\r\n", 200),
        (b"content-length: 128\r\nhost: evil.example\r\n", None),
        (b"content-length: 128\r\nupgrade: h2c\r\nconnection: upgrade\r\n", None),
    ],
)
def test_unusual_heads_are_left_to_the_parser(connect, taken, lines, status):
    wire = connect()
    wire.send(b"POST %s HTTP/1.1\r\nhost: %s\r\n%s\r\n%s" % (RAW.encode(), wire.host.encode(), lines, QUERY))
    first = wire.answers.readline()
    assert status is None or first.startswith(b"HTTP/1.1 %d " % status)
    assert "wire" not in taken


def test_the_old_version_is_left_to_the_parser(connect, taken):
    wire = connect()
    wire.send(wire.request(RAW, QUERY).replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert wire.rest().startswith(b"HTTP/1.1 200 ")
    assert "wire" not in taken


def test_every_request_shows_its_key(start, connect, taken):
    guarded = start(read_key="r" * 20)
    guarded.service.threads.at_once = lambda store, vector, k, **options: store.search(vector, k, **options)
    wire = connect(guarded.address)
    right, wrong = (wire.request(RAW, QUERY, {"x-api-key": key * 20}) for key in "rw")
    for _ in range(2):
        assert wire.ask(right).status_code == 200
        assert wire.ask(wrong).status_code == 403
    assert wire.ask(wire.request(RAW, QUERY)).status_code == 401
    assert taken == 2 * ["wire"]


def test_an_idle_connection_ends(stored):
    async def application(scope, receive, send):
        raise AssertionError("the wire answers")

    async def talk():
        config = uvicorn.Config(application, log_config=None, timeout_keep_alive=0.2)
        config.load()
        service = stored.service
        requests = RequestLog(service.metrics)

        def protocol():
            return WireProtocol(
                service,
                Keeper(service),
                requests,
                refusals=Refusals(service.admission, requests, service.settings),
                config=config,
                server_state=ServerState(),
                app_state={},
            )

        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for _ in range(3):
                writer.write(
                    b"POST %s HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 128\r\n\r\n" % RAW.encode()
                )
                writer.write(QUERY)
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 OK")
                await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r")[0]))
                await asyncio.sleep(0.1)
            started = time.perf_counter()
            assert await reader.read() == b""
            assert time.perf_counter() - started < 5
            writer.close()

    asyncio.run(talk())
