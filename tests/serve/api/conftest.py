"""What the API says of items and their search holds over either kind of store; bytes on a socket."""

import http.client
import socket
import time
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from serve import searching
from serve.schemas import NewItem

OVER_BOTH = ("test_items", "test_search", "test_collections")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "running" in metafunc.fixturenames and metafunc.module.__name__.endswith(OVER_BOTH):
        metafunc.parametrize("running", ["folder", "milvus"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def stored(running):
    """A service with fifty items, whose searches are taken to be quick enough for the event loop."""
    rng = np.random.default_rng(0)
    items = [
        NewItem(id=n if n % 2 else f"item {n}", vector=rng.standard_normal(32).tolist(), label="ab"[n % 2])
        for n in range(50)
    ]
    with pytest.MonkeyPatch.context() as patch, running.client() as client:
        patch.setattr(searching, "_INLINE_SECONDS", 60.0)
        assert client.upsert_vectors(items) == 50
        assert client.search_vector(items[0].vector).hits[0].id == "item 0"
        yield running


class Wire:
    """A connection on which bytes are sent as the test cuts them."""

    def __init__(self, address: str) -> None:
        place = urlsplit(address)
        self.host = place.netloc
        self.socket = socket.create_connection((place.hostname, place.port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answers = self.socket.makefile("rb")

    def request(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
        """A whole request."""
        fields = {"host": self.host, "content-length": str(len(body)), **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body

    def send(self, *pieces: bytes) -> None:
        """Send pieces so that the server gets them apart."""
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(0.02)
            self.socket.sendall(piece)

    def answer(self) -> httpx.Response:
        """The next answer."""
        status = int(self.answers.readline().split()[1])
        headers = http.client.parse_headers(self.answers).items()
        body = self.answers.read(int(dict(headers)["content-length"]))
        return httpx.Response(status, headers=headers, content=body)

    def ask(self, *pieces: bytes) -> httpx.Response:
        """Send pieces and read the answer."""
        self.send(*pieces)
        return self.answer()

    def rest(self) -> bytes:
        """What comes until the server closes the connection."""
        return self.answers.read()


@pytest.fixture
def connect(stored):
    """Opens connections to the service."""
    opened = []

    def make(address: str | None = None) -> Wire:
        opened.append(Wire(address or stored.address))
        return opened[-1]

    yield make
    for wire in opened:
        wire.answers.close()
        wire.socket.close()
