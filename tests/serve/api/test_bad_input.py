"""Everything a stranger may send: a 4xx that names the thing and the remedy, and the service lives on."""

import contextlib
import io
import json
import socket
import struct
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image

PROBLEM = "application/problem+json"


def refused(response, status, *words):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    problem = response.json()
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "\n" not in problem["detail"]
    for word in words:
        assert word in problem["detail"], problem["detail"]


def bomb(width=50_000, height=50_000):
    """A PNG of a few bytes that says it is huge."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.fixture
def post(running):
    with httpx.Client(base_url=running.address, timeout=30) as http:
        yield http.post


def test_text_file_as_image(post):
    refused(post("/v1/search", files={"image": b"dear diary"}), 422, "not an image")


def test_truncated_jpeg(post, picture):
    content = picture(form="JPEG")
    refused(post("/v1/search", files={"image": content[: len(content) // 2]}), 422, "truncated")


def test_decompression_bomb_is_refused_from_its_header(post):
    refused(post("/v1/search", files={"image": bomb()}), 422, "pixels", "limit")


def test_empty_image(post):
    refused(post("/v1/search", files={"image": b""}), 422, "empty")


def test_missing_image(post):
    refused(post("/v1/search", files={"picture": b"x"}), 422, "image", "curl -F")


@pytest.mark.parametrize(
    ("path", "files", "words"),
    [
        ("/v1/search", ["image", "k"], ["k", "as text"]),
        ("/v1/search/batch", ["image", "images"], ["images"]),
        ("/v1/verify", ["first", "second", "third"], ["third"]),
        ("/v1/search", ["image", "image"], ["image", "takes one"]),
        ("/v1/items", ["image", "image", "image"], ["3 files"]),
        ("/v1/verify", ["first", "second", "first"], ["first", "takes one"]),
    ],
)
def test_files_that_would_be_passed_over_are_refused(post, picture, path, files, words):
    refused(post(path, files=[(name, picture()) for name in files]), 422, *words)


@pytest.mark.parametrize("after", [2**63, -(2**63) - 1, 10**30])
def test_a_place_beyond_64_bits(running, after):
    refused(httpx.get(f"{running.address}/v1/items?after={after}"), 422, "after")


def test_form_without_boundary_or_end(post):
    headers = {"content-type": "multipart/form-data"}
    refused(post("/v1/search", content=b"--x", headers=headers), 400, "boundary")
    headers = {"content-type": "multipart/form-data; boundary=x"}
    part = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\nabc'
    refused(post("/v1/search", content=part, headers=headers), 400, "closing boundary")


def test_wrong_content_type(post):
    refused(post("/v1/search", content=b"a=b", headers={"content-type": "text/plain"}), 415, "text/plain")
    refused(post("/v1/search/vector", content=b"{}", headers={"content-type": "text/plain"}), 415, "json")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"k": "many"}, "k"),
        ({"k": "0"}, "k"),
        ({"k": "100000"}, "limit"),
        ({"colour": "red"}, "colour"),
        ({"filter": "{"}, "filter"),
        ({"filter": '{"metadata.a": {"like": 1}}'}, "like"),
        ({"min_similarity": "nan"}, "min_similarity"),
        ({"min_similarity": "7"}, "min_similarity"),
        ({"group_by": "size"}, "group_by"),
        ({"exclude": "[1.5]"}, "exclude"),
    ],
)
def test_bad_options(post, picture, fields, word):
    response = post("/v1/search", files={"image": picture()}, data=fields)
    refused(response, 422, word)


def test_unknown_collection(post, picture):
    refused(post("/v1/search", files={"image": picture()}, data={"collection": "atlantis"}), 404, "atlantis")


def test_vector_of_another_length(post):
    refused(post("/v1/search/vector", json={"vector": [1.0, 2.0]}), 422, "2")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", '"one"', "null"])
def test_vector_of_no_numbers(post, number):
    body = f'{{"vector": [{number}]}}'
    response = post("/v1/search/vector", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == PROBLEM


@pytest.mark.parametrize("value", [0.0, 1e300])
def test_vector_without_direction(post, value):
    refused(post("/v1/search/vector", json={"vector": [value] * 32}), 422)


def test_raw_vectors(post):
    refused(post("/v1/raw/search", content=b"abc"), 422, "128")
    refused(post("/v1/raw/search", content=b""), 422)
    nan = np.full(32, np.nan, "<f4").tobytes()
    refused(post("/v1/raw/search", content=nan), 422, "finite")
    refused(post("/v1/raw/search?k=x", content=nan), 422, "k")
    refused(post("/v1/raw/search?k=100000", content=nan), 422, "limit")


def test_neither_or_both_of_vector_and_vectors(post):
    refused(post("/v1/search/vector", json={}), 422, "either")
    refused(post("/v1/search/vector", json={"vector": [1.0], "vectors": [[1.0]]}), 422, "either")


def test_json_that_is_none(post):
    refused(
        post("/v1/search/vector", content=b"{", headers={"content-type": "application/json"}), 400, "JSON"
    )


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_json_that_is_deep(post, depth):
    deep = '{"vector": [1], "filter": ' + '{"not": ' * depth + "{}" + "}" * (depth + 1)
    response = post("/v1/search/vector", content=deep, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)


def test_too_many_at_once(start, picture):
    running = start(max_batch=3)
    files = [("image", picture(seed)) for seed in range(4)]
    refused(httpx.post(f"{running.address}/v1/embed", files=files), 422, "4 images", "limit of 3")


def test_body_over_the_limit_announced(start):
    running = start(max_body_bytes=2048)
    refused(httpx.post(f"{running.address}/v1/raw/search", content=b"x" * 4096), 413, "2048")


def test_body_over_the_limit_streamed(start):
    """Without a Content-Length, the byte that exceeds the limit ends it."""
    running = start(max_body_bytes=2048)
    sent = 0

    def endless():
        nonlocal sent
        while sent < 2**30:
            sent += 1024
            yield b"x" * 1024

    # The connection may end before the client reads the answer.
    with contextlib.suppress(httpx.TransportError):
        address = f"{running.address}/v1/embed"
        refused(httpx.post(address, content=endless(), headers={"content-type": "image/png"}), 413)
    assert sent < 2**27


def test_a_body_that_does_not_come_is_given_up(start):
    running = start(body_seconds=0.2)
    host, port = running.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as wire:
        wire.sendall(b"POST /v1/embed HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: image/png\r\n")
        wire.sendall(b"content-length: 100\r\n\r\nhello")
        assert wire.recv(4096).startswith(b"HTTP/1.1 408")
    assert running.service.admission.inside == 0


def test_unknown_paths_and_methods(running):
    with httpx.Client(base_url=running.address) as http:
        refused(http.get("/v1/nothing"), 404)
        refused(http.put("/v1/search"), 405)
        refused(http.get("/v1/items/77777"), 404, "77777")
        refused(http.delete("/v1/items/77777"), 404, "77777")
        refused(http.get("/v1/items/77777/thumbnail"), 404)
        refused(http.get("/v1/items/99999999999999999999999/similar"), 404)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr"])
def test_every_colour_mode_is_embedded(running, mode):
    buffer = io.BytesIO()
    form = {"F": "TIFF", "I": "TIFF", "CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    image = Image.new("L", (20, 30), 100) if mode not in ("I;16", "F") else Image.new(mode, (20, 30), 100)
    image.convert(mode).save(buffer, form)
    with running.client() as client:
        (vector,) = client.embed([buffer.getvalue()]).vectors
    assert np.isfinite(vector).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1)])
def test_extreme_shapes_are_embedded(running, picture, size):
    with running.client() as client:
        (vector,) = client.embed([picture(size=size)]).vectors
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)


def test_exif_rotation_is_applied(running, bundle):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 6, 3), dtype=np.uint8)
    upright = Image.fromarray(pixels).resize((60, 80), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90° clockwise
    buffers = io.BytesIO(), io.BytesIO()
    upright.save(buffers[0], "PNG")
    upright.transpose(Image.Transpose.ROTATE_90).save(buffers[1], "PNG", exif=exif)
    with running.client() as client:
        first, second = client.embed([buffer.getvalue() for buffer in buffers]).vectors
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_nonsense_on_the_wire_leaves_the_service_alive(running):
    host, port = running.address.removeprefix("http://").split(":")
    for content in (b"\x00\xff\xfe\r\n\r\n", b"POST /v1/search HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=5) as wire:
            wire.sendall(content)
            wire.shutdown(socket.SHUT_WR)
            wire.recv(4096)
    assert httpx.get(f"{running.address}/readyz").json() == {"status": "ok"}


def test_the_problem_is_json_even_for_odd_text(post):
    response = post(
        "/v1/search/vector", content=json.dumps({"\ud800": 1}), headers={"content-type": "application/json"}
    )
    assert response.status_code in (400, 422)
    response.json()
