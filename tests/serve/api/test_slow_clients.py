"""Clients that send slowly, little or without end: they are ended, and nobody else notices them."""

import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import httpx
import pytest

from serve import connections, uploads
from serve.schemas import NewItem

HEAD = (
    "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: image/png\r\ncontent-length: {length}\r\n\r\n"
)


def dial(running, stack):
    place = urlsplit(running.address)
    return stack.enter_context(socket.create_connection((place.hostname, place.port), timeout=20))


def rest(sock):
    """All that comes until the server ends the connection."""
    got = b""
    try:
        while chunk := sock.recv(65536):
            got += chunk
    except ConnectionError:
        pass
    return got


def healthy(running):
    return httpx.get(f"{running.address}/healthz", timeout=5).status_code == 200


def test_slow_uploads_keep_nobody_out(start, picture):
    """Many more of them than may come in at once, and each sends a byte now and then."""
    running = start(max_uploads=8)
    with ExitStack() as stack:
        slow = [dial(running, stack) for _ in range(20)]
        for sock in slow:
            sock.sendall(HEAD.format(path="/v1/search", length=1000).encode() + b"x")
        time.sleep(uploads._GRACE_SECONDS + 0.2)
        for number in range(30):
            answer = httpx.post(f"{running.address}/v1/search", files={"image": picture(number)})
            assert answer.status_code == 200, answer.text
        given_up = sum(b"408" in rest_now(sock) for sock in slow)
        assert given_up >= 1
        assert running.service.admission.inside == 0


def rest_now(sock):
    """What has come so far."""
    sock.setblocking(False)
    try:
        return sock.recv(65536)
    except (BlockingIOError, ConnectionError):
        return b""


@pytest.mark.parametrize(
    ("settings", "pause"), [({"body_seconds": 0.5}, 10), ({"upload_seconds": 1, "body_seconds": 5}, 0.3)]
)
def test_a_slow_body_is_ended(start, settings, pause):
    running = start(**settings)
    with ExitStack() as stack:
        sock = dial(running, stack)
        sock.sendall(HEAD.format(path="/v1/embed", length=1000).encode())
        sock.settimeout(pause)
        got = b""
        for _ in range(30):
            try:
                sock.sendall(b"x")
                got += sock.recv(65536)
                break
            except TimeoutError:
                continue
        assert got.startswith(b"HTTP/1.1 408 "), got
        assert b"urn:kindred:problem:body-timeout" in got
    assert healthy(running)


def test_bytes_that_are_coming_in_are_bounded_together(start):
    running = start(max_upload_bytes=300_000)
    with ExitStack() as stack:
        for _ in range(3):
            sock = dial(running, stack)
            sock.sendall(HEAD.format(path="/v1/embed", length=1_000_000).encode() + bytes(90_000))
        for _ in range(200):
            if running.service.uploads.bytes >= 270_000:
                break
            time.sleep(0.01)
        assert running.service.uploads.bytes == 270_000
        last = dial(running, stack)
        last.sendall(HEAD.format(path="/v1/embed", length=1_000_000).encode() + bytes(90_000))
        assert rest(last).startswith(b"HTTP/1.1 429 ")
    for _ in range(200):
        if running.service.uploads.bytes == 0:
            break
        time.sleep(0.01)
    assert running.service.uploads.bytes == 0
    assert not running.service.uploads.open


def send_for(sock, line, seconds):
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        sock.sendall(line)


def test_an_endless_head_is_refused(start):
    running = start()
    with ExitStack() as stack:
        sock = dial(running, stack)
        sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n")
        with pytest.raises(ConnectionError):
            send_for(sock, b"x-more: " + b"a" * 8000 + b"\r\n", 10 * connections._LINGER_SECONDS)
    assert healthy(running)


def test_a_long_head_hears_431(start):
    running = start()
    with ExitStack() as stack:
        sock = dial(running, stack)
        line = b"x-more: " + b"a" * (connections.MOST_HEAD_BYTES + 1000)
        sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n" + line)
        got = rest(sock)
    assert got.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert b"urn:kindred:problem:head-too-large" in got


def test_a_head_and_a_long_body_in_one_piece_are_no_long_head(start, picture):
    running = start()
    body = picture(size=(400, 400), form="BMP")
    assert len(body) > connections.MOST_HEAD_BYTES
    with ExitStack() as stack:
        sock = dial(running, stack)
        for _ in range(2):
            sock.sendall(HEAD.format(path="/v1/embed", length=len(body)).encode() + body)
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_idle_connections_and_slow_heads_are_ended(start):
    running = start(head_seconds=0.5)
    with ExitStack() as stack:
        silent, slow = dial(running, stack), dial(running, stack)
        slow.sendall(b"GET / HT")
        assert rest(silent) == b""
        assert rest(slow).startswith(b"HTTP/1.1 408 ")
    assert healthy(running)


LARGE = b"GET /v1/items?limit=1000&with_vectors=true HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"


@pytest.fixture
def reader(start):
    """A service with large answers, and a connection that takes little at once."""
    running = start(body_seconds=1)
    with running.client() as client:
        client.upsert_vectors([NewItem(id=n, vector=[0.1 + n] * 32) for n in range(1000)])
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(20)
        place = urlsplit(running.address)
        sock.connect((place.hostname, place.port))
        yield running, sock


def test_who_reads_no_answer_is_ended(reader):
    running, sock = reader
    with suppress(ConnectionError):
        for _ in range(400):
            sock.sendall(LARGE)
            time.sleep(0.01)
    for _ in range(100):
        if not len(running.service.connections):
            break
        time.sleep(0.1)
    assert len(running.service.connections) == 0


def test_who_reads_slowly_gets_the_whole_answer(reader):
    running, sock = reader
    whole = httpx.get(f"{running.address}{LARGE.split()[1].decode()}").content
    sock.sendall(LARGE * 9 + LARGE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    got = b""
    while chunk := sock.recv(2**18):
        got += chunk
        time.sleep(0.01)
    assert got.count(whole) == 10


def test_of_too_many_connections_the_longest_idle_one_goes(start):
    running = start(max_connections=10, head_seconds=60)
    with ExitStack() as stack:
        first = dial(running, stack)
        others = [dial(running, stack) for _ in range(9)]
        for _ in range(200):
            if len(running.service.connections) == 10:
                break
            time.sleep(0.01)
        assert healthy(running)  # on a connection of its own
        assert rest(first) == b""
        others[-1].sendall(b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert others[-1].recv(4096).startswith(b"HTTP/1.1 200 ")
        text = httpx.get(f"{running.address}/metrics").text
        assert re.search(r"kindred_connections (9|10)\.0\n", text)


def test_the_limit_on_open_files_is_raised():
    code = """
import resource
from serve.connections import most_connections
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
print(most_connections(2000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
print(most_connections(2000))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2000", "2256", "44"]
