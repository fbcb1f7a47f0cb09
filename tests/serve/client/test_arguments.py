"""What callers pass to the client: single ids, paths as text, NumPy's numbers, odd addresses and proxies."""

import io
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from models.errors import InputError
from serve.client import AsyncClient, Client, ServiceError
from serve.client.encoding import blocks
from serve.schemas import NewItem


@pytest.fixture
def client(start):
    with start().client() as client:
        client.upsert_vectors(NewItem(id=name, vector=[1.0] * 32) for name in "abc")
        yield client


def test_one_id_is_not_a_list_of_ids(client, picture, tmp_path):
    for call in (client.delete, client.get_many, client.search_examples):
        with pytest.raises(InputError, match=r"'abc' is not a list; put it into one: \['abc'\]"):
            call("abc")
    with pytest.raises(InputError, match="not a list"):
        client.search_vector([1.0] * 32, exclude="abc")
    for images in (picture(1), tmp_path / "q.png", "q.png"):
        with pytest.raises(InputError, match="not a list"):
            client.embed(images)
    assert client.count() == 3


def test_images(client, picture, tmp_path):
    (tmp_path / "q.png").write_bytes(picture(1))
    for image in (tmp_path / "q.png", str(tmp_path / "q.png"), bytearray(picture(1)), memoryview(picture(1))):
        assert client.search_image(image, 1).hits
    for image in (np.zeros((8, 8, 3), np.uint8), Image.new("RGB", (8, 8)), None, io.BytesIO(picture(1))):
        with pytest.raises(InputError, match="is no image; give encoded bytes or the path of a file"):
            client.search_image(image)


def test_numbers_of_numpy(client, picture):
    assert len(client.search_vector(np.ones(32), np.int64(2)).hits) == 2
    assert client.upsert(picture(1), np.int64(5), metadata={"n": np.float32(0.5), "all": np.arange(2)}) == 5
    assert client.get(np.int64(5)).metadata == {"n": 0.5, "all": [0, 1]}
    assert client.count(where={"metadata.n": np.float32(0.5)}) == 1
    assert client.import_items([NewItem(id="n", vector=np.ones(32))]) == 1
    with pytest.raises(InputError, match="a complex cannot be sent as JSON; convert it to text"):
        client.upsert(picture(1), "d", metadata={"on": 1j})
    with pytest.raises(InputError, match="no id"):
        client.get(1.5)


def test_a_block_of_numpy_vectors():
    (block,) = blocks([NewItem(id="a", vector=np.ones(2, np.float32))])
    assert b"[1.0,1.0]" in block


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "address", ["localhost:8000", "", "ftp://x", "http://", "http://[::1", "http://x:a", None]
)
def test_an_address_that_is_none(kind, address):
    with pytest.raises(
        InputError, match=r"no address of a service.*; give one such as http://127\.0\.0\.1:8000"
    ):
        kind(address)


@pytest.mark.parametrize(
    ("name", "value"), [("ALL_PROXY", "socks5://x:1"), ("SSL_CERT_FILE", "/nowhere/at all")]
)
def test_a_proxy_or_certificate_that_cannot_be_used(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"check the proxies and certificates .*{name}"):
        Client("http://127.0.0.1:8000")


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (302, {"Location": "https://login/"}, "status 302: it redirects to https://login/; give the address"),
        (404, {}, "status 404: this is no answer of the service; check the address, and a proxy on the way"),
    ],
)
def test_an_answer_of_something_else(status, headers, message):
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": "6"}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        with Client(f"http://127.0.0.1:{server.server_port}") as client, pytest.raises(ServiceError) as met:
            client.stats()
        thread.join()
    assert message in str(met.value)
    assert met.value.status == status


@pytest.mark.parametrize("number", [float("nan"), np.float32("inf")])
def test_metadata_that_json_has_no_form_for(client, picture, number):
    metadata = {"deep": [{"n": number}]}
    item = NewItem(id="n", vector=[1.0] * 32, metadata=metadata)
    for call in (
        lambda: client.upsert(picture(1), "n", metadata=metadata),
        lambda: client.change("a", {"metadata": metadata}),
        lambda: client.upsert_vectors([item]),
        lambda: client.import_items([item]),
    ):
        with pytest.raises(InputError, match=r"metadata holds (nan|inf), .*leave the field out"):
            call()
