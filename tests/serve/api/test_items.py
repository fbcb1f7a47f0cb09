"""Items over HTTP: ids of both kinds, thumbnails, changes, pages, deletion."""

import io
import json
import socket
import time
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serve.client import ServiceError
from serve.schemas import NewItem, format_id


@pytest.fixture
def client(running):
    with running.client() as client:
        yield client
        client.delete(where={})


@pytest.mark.parametrize(
    "item_id",
    [7, "7", -3, "a/b c.png", "a\nb", "a\n", "ü 日本", '"quoted"', "x/similar", "..", "%2F", "0012"],
)
def test_ids_come_back_as_they_went(client, picture, item_id):
    assert client.upsert(picture(1), item_id) == item_id
    assert client.get(item_id).id == item_id
    assert client.search_image(picture(1), k=1).hits[0].id == item_id
    assert client.search_by_id(item_id).hits == []
    assert client.delete([item_id]) == 1
    assert client.get(item_id) is None


ODD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
ID = st.integers(-(2**63), 2**63 - 1) | ODD | st.builds(str, st.integers()) | st.builds('"{}"'.format, ODD)


def test_whatever_id_is_accepted_can_be_reached(client):
    other = [0.5] * 32

    @settings(max_examples=60, deadline=None)
    @given(
        ID
        | st.builds("{}\n".format, st.just("a"))
        | st.sampled_from(["\n", "a\nb/similar", "x" * 1024, "\U0001d11e" * 1024])
    )
    def check(item_id):
        near = f"{item_id} is another"[-1000:]
        items = [
            NewItem(id=item_id, vector=[1.0] * 32),
            NewItem(id=near, vector=other),
            NewItem(id="a", vector=other),
        ]
        client.upsert_vectors(items)
        assert client.get(item_id).id == item_id
        assert item_id not in [hit.id for hit in client.search_by_id(item_id).hits]
        assert client.change(item_id, {"label": "seen"}).id == item_id
        with pytest.raises(ServiceError) as error:
            client.thumbnail(item_id)
        assert error.value.code == "thumbnail-missing"
        path = f"/v1/items/{quote(format_id(item_id), safe='')}"
        assert client._http.delete(path).json() == {"deleted": 1}
        assert client.get(item_id) is None
        assert client.get(near).id == near

    check()


def test_the_string_and_the_integer_are_two_items(client, picture):
    client.upsert(picture(1), 7, label="integer")
    client.upsert(picture(2), "7", label="string")
    assert (client.get(7).label, client.get("7").label) == ("integer", "string")


def test_an_id_is_made_from_the_image(client, picture):
    first, again, other = (client.upsert(picture(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_upsert_replaces_the_whole_item(client, picture):
    client.upsert(picture(1), "a", label="old", metadata={"x": 1})
    client.upsert(picture(2), "a")
    item = client.get("a")
    assert (item.label, item.metadata) == (None, {})
    assert client.search_image(picture(2), k=1).hits[0].similarity == pytest.approx(1, abs=1e-5)


def test_change_merges_metadata(client, picture):
    client.upsert(picture(1), "a", label="old", metadata={"x": 1, "y": 2})
    item = client.change("a", {"metadata": {"x": None, "z": 3}})
    assert (item.label, item.metadata) == ("old", {"y": 2, "z": 3})
    assert client.change("a", {"label": None}).label is None
    with pytest.raises(ServiceError, match="size"):
        client.change("a", {"size": 3})


def test_vectors_are_stored_all_or_none(client, bundle, picture):
    vectors = bundle.embed([picture(seed) for seed in range(3)]).tolist()
    items = [NewItem(id=f"v{at}", vector=vector) for at, vector in enumerate(vectors)]
    assert client.upsert_vectors(items, fingerprint=bundle.fingerprint) == 3
    with pytest.raises(ServiceError) as error:
        client.upsert_vectors([NewItem(id="w", vector=vectors[0]), NewItem(id="x", vector=[0.0] * 32)])
    assert error.value.status == 422
    assert client.get("w") is None
    with pytest.raises(ServiceError) as error:
        client.upsert_vectors(items, fingerprint="another model")
    assert (error.value.status, error.value.code) == (409, "fingerprint")


def test_an_import_streams_and_tells_its_progress(client, running):
    vectors = np.random.default_rng(0).standard_normal((5000, 32)).round(3)

    def lines(until):
        for number, vector in enumerate(vectors[:until]):
            yield json.dumps({"id": number, "vector": vector.tolist(), "label": "x"}).encode() + b"\n"

    def progress(content):
        answer = httpx.post(f"{running.address}/v1/import", content=content, timeout=60)
        return [json.loads(line) for line in answer.text.splitlines()]

    assert progress(lines(5000)) == [
        {"stored": 2000, "line": 2000},
        {"stored": 4000, "line": 4000},
        {"stored": 5000, "line": 5000},
        {"stored": 5000, "line": 5000, "done": True},
    ]
    assert client.search_vector(vectors[4321], k=1).hits[0].id == 4321


GOOD = {"vector": [1.0] + [0.5] * 31}


@pytest.mark.parametrize(
    ("bad", "code", "words"),
    [
        ({"vector": [1.0, 2.0]}, "dimension", "takes 32"),
        ({"vector": [0.0] * 32}, "store", "zero"),
        ({"vector": [1e300] * 32}, "store", "infinite"),
        ({"vector": "red"}, "line", "array"),
        ({**GOOD, "thumbnail": "PHNjcmlwdD4="}, "thumbnail", "no JPEG"),
        ({**GOOD, "metadata": {"x": float("inf")}}, "line", "JSON"),
        ({**GOOD, "metadata": {"x": "y" * 70_000}}, "store", "bytes"),
        ({**GOOD, "colour": "red"}, "line", "colour"),
        ({**GOOD, "id": "a\0b"}, "store", "NUL"),
        ({**GOOD, "id": 2**64}, "line", "id"),
        ({**GOOD, "label": "a\0b"}, "store", "label"),
        (986, "store", "deep"),
        (100_000, "line", "recursion"),
        (b"{", "line", "truncated"),
        (b'{"id": "\xff"}', "line", "utf-8"),
        (b"x" * (2**20 + 70_000), "line-too-long", "bytes"),
    ],
)
def test_an_import_names_the_line_that_it_refuses(client, running, bad, code, words):
    """Whatever came before: duplicates and blank lines count as lines, and all lines before are stored."""
    # One time there are blocks of 2,000 lines before it.
    before, items = (4499, 3000) if code == "dimension" else (99, 66)
    good = [json.dumps({"id": n % items, **GOOD}).encode() for n in range(before)]
    good[10:20] = [b"", b"  "] * 5
    if isinstance(bad, int):
        nested = '{"x":' * bad + "1" + "}" * bad
        bad = json.dumps({"id": "bad", **GOOD})[:-1].encode() + b', "metadata": ' + nested.encode() + b"}"
    elif isinstance(bad, dict):
        bad = json.dumps({"id": "bad", **bad}).encode()
    body = b"\n".join([*good, bad, json.dumps({"id": "after", **GOOD}).encode()])
    answer = httpx.post(f"{running.address}/v1/import", content=body, timeout=60)
    last = json.loads(answer.text.splitlines()[-1])
    assert (last["refused"], last["line"], last["code"]) == (before + 1, before, code)
    assert last["error"].startswith(f"line {before + 1}: ")
    assert words.lower() in last["error"].lower()
    assert client.stats().items == items
    assert httpx.get(f"{running.address}/v1/items?limit=500").status_code == 200


@pytest.mark.parametrize("end", ["silence", "departure"])
def test_lines_that_came_are_stored_when_no_more_come(start, monkeypatch, end):
    monkeypatch.setattr("serve.api.imports._PAUSE_SECONDS", 0.05)
    running = start(body_seconds=1.0)
    lines = b"".join(json.dumps({"id": n, **GOOD}).encode() + b"\n" for n in range(7))
    url = httpx.URL(running.address)
    with running.client() as client, socket.create_connection((url.host, url.port), timeout=20) as wire:
        head = f"POST /v1/import HTTP/1.1\r\nhost: {url.netloc.decode()}\r\ncontent-length: 99999\r\n\r\n"
        wire.sendall(head.encode() + lines + b'{"id": "half')
        if end == "silence":
            with wire.makefile("rb") as answer:
                told = [json.loads(line) for line in answer if line.startswith(b"{")]
            assert told[0] == {"stored": 7, "line": 7}
            assert (told[-1]["stored"], told[-1]["line"], told[-1]["status"]) == (7, 7, 408)
            assert "refused" not in told[-1]
        else:
            wire.close()
            for _ in range(400):
                if client.stats().items:
                    break
                time.sleep(0.02)
        assert [item.id for item in client.scan()] == list(range(7))


def test_an_import_that_fails_here_says_so(client, running, monkeypatch, caplog):
    """The status has been sent already: the last line has to tell."""
    monkeypatch.setattr(running.store, "upsert", lambda *_, **__: 1 / 0)
    answer = httpx.post(f"{running.address}/v1/import", content=b'{"id": 1, "vector": [1.0]}')
    last = answer.json()
    assert (last["stored"], last["status"], last["code"]) == (0, 500, "internal")
    assert "division by zero" not in answer.text
    assert "division by zero" in caplog.text


def test_many_long_lines_are_not_collected(client, running, monkeypatch):
    """Two thousand lines of a megabyte each would not fit into memory: blocks are cut by their bytes too."""
    monkeypatch.setattr("serve.api.imports._BYTES", 1000)
    lines = b"\n".join(json.dumps({"id": n, "vector": [1.0] * 32}).encode() for n in range(30))
    answer = httpx.post(f"{running.address}/v1/import", content=lines)
    told = [json.loads(line)["stored"] for line in answer.text.splitlines()]
    assert len(told) > 4
    assert told[-1] == 30


def test_thumbnails_are_small_jpegs(client, running, picture):
    client.upsert(picture(1, size=(800, 600), form="JPEG"), "big")
    address = f"{running.address}/v1/items/big/thumbnail"
    answer = httpx.get(address)
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (160, 120)
    again = httpx.get(address, headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304


def test_a_known_thumbnail_is_not_sent_again(client, running, picture):
    client.upsert(picture(), "known")
    url = f"{running.address}/v1/items/known/thumbnail"
    tag = httpx.get(url).headers["etag"]

    def status(known):
        return httpx.get(url, headers={"if-none-match": known}).status_code

    assert [status(known) for known in (tag, f"W/{tag}", "*", f'"a", W/"b",{tag}')] == [304] * 4
    assert [status(known) for known in ('"a"', "", tag.strip('"'))] == [200] * 3


def test_pages_cover_everything_once(client, running, picture):
    for seed in range(7):
        client.upsert(picture(seed), seed, label="even" if seed % 2 == 0 else "odd")
    seen, after = [], None
    while True:
        params = {"limit": 3} if after is None else {"limit": 3, "after": after}
        page = httpx.get(f"{running.address}/v1/items", params=params).json()
        seen += [item["id"] for item in page["items"]]
        after = page["next"]
        if after is None:
            break
    assert seen == list(range(7))
    only = httpx.get(f"{running.address}/v1/items", params={"label": "odd"}).json()
    assert [item["id"] for item in only["items"]] == [1, 3, 5]
    assert httpx.get(f"{running.address}/v1/labels").json() == {"labels": {"even": 4, "odd": 3}}


def test_delete_by_filter_and_the_deleted_stay_away(client, running, picture):
    erase = not str(running.settings.store).startswith("file:")  # test_milvus.py has what Milvus says to it
    for seed in range(6):
        client.upsert(picture(seed), seed, label="keep" if seed < 3 else "drop")
    assert client.delete(where={"label": "drop"}, erase=erase) == 3
    assert {hit.id for hit in client.search_image(picture(5)).hits} == {0, 1, 2}


def test_a_written_item_is_found_by_the_next_search(client, picture):
    for seed in range(20):
        client.upsert(picture(seed), seed)
        assert client.search_image(picture(seed), k=1).hits[0].id == seed


def test_a_sample_mixes_labels(client, running):
    """Items are mostly stored class by class; the first of them would all be of one class."""
    vectors = np.random.default_rng(0).standard_normal((300, 32))
    client.upsert_vectors(
        NewItem(id=n, vector=vector.tolist(), label=f"label {n // 60}") for n, vector in enumerate(vectors)
    )
    drawn = client.sample(20, with_vectors=True)
    assert len({item.id for item in drawn}) == 20
    assert len({item.label for item in drawn[:5]}) == 5
    assert all(len(item.vector) == 32 for item in drawn)
    assert {item.id for item in client.sample(20)} != {item.id for item in drawn}
    assert [item.id for item in client.sample(300)][:6] == [0, 60, 120, 180, 240, 1]
    answer = httpx.get(f"{running.address}/v1/items", params={"sample": True, "label": "label 1"})
    assert (answer.status_code, "leave out" in answer.json()["detail"]) == (422, True)
