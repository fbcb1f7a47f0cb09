"""Importing through the client: by the thousand, over broken connections, with errors that name the item."""

import asyncio

import httpx
import numpy as np
import pytest

from serve.client import AsyncClient, Retries, ServiceError, encoding
from serve.schemas import NewItem

QUICK = Retries(attempts=3, first_seconds=0.001)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of a few dozen items instead of thousands."""
    monkeypatch.setattr(encoding.blocks, "__defaults__", (20_000,))


def new_items(count, dim=32, **given):
    rows = np.random.default_rng(0).standard_normal((count, dim))
    return [NewItem(id=n, vector=row.tolist(), label=f"l{n % 3}", **given) for n, row in enumerate(rows)]


def test_blocks_hold_every_item_once():
    items = new_items(100)
    blocks = list(encoding.blocks(items, most=5_000))
    assert len(blocks) > 10
    assert b"\n".join(blocks).count(b'"id":') == 100
    assert max(map(len, blocks)) < 5_000 + 1_000
    assert list(encoding.blocks([])) == []


def test_an_import_is_complete_and_tells_how_far_it_is(start, picture):
    running = start()
    told = []
    thumbnail = picture(1, form="JPEG")
    with running.client() as client:
        items = (item for item in new_items(200, thumbnail=thumbnail))  # read while they are sent
        assert client.import_items(items, on_progress=told.append) == 200
        assert told == sorted(told)
        assert len(told) > 3
        assert told[-1] == 200
        assert client.thumbnail(7) == thumbnail
        assert client.stats().items == 200
        assert client.labels() == {"l0": 67, "l1": 67, "l2": 66}
        assert [item.id for item in client.scan(label="l1")] == list(range(1, 200, 3))


def test_a_block_whose_answer_is_lost_is_sent_again(start):
    """The connection breaks after the service has stored the block; the outcome is the same."""
    running = start()

    class Breaking(httpx.HTTPTransport):
        sent = 0

        def handle_request(self, request):
            response = super().handle_request(request)
            self.sent += 1
            if self.sent in (2, 3, 7):
                response.read()
                raise httpx.ReadError("broken")
            return response

    with running.client(retries=QUICK) as client:
        client._http = httpx.Client(base_url=running.address, transport=Breaking())
        assert client.import_items(new_items(200)) == 200
        assert client.stats().items == 200


def test_what_is_refused_is_named_and_what_came_before_stays(start):
    running = start()
    items = new_items(150)
    items[120] = NewItem(id=120, vector=[1.0, 2.0])
    with running.client() as client:
        with pytest.raises(
            ServiceError, match=r"^item number 121: item 120: .*the 120 before are stored"
        ) as error:
            client.import_items(items)
        assert (error.value.status, error.value.code) == (422, "dimension")
        assert client.stats().items == 120
        with pytest.raises(ServiceError) as error:
            client.import_items(new_items(3), fingerprint="another")
        assert (error.value.status, error.value.code) == (409, "fingerprint")
        with pytest.raises(ServiceError, match="no JPEG"):
            client.import_items([NewItem(id=1, vector=[1.0] * 32, thumbnail=b"<script>")])


def test_the_asynchronous_twin(start):
    running = start()

    async def talk():
        async with AsyncClient(running.address) as client:
            assert await client.import_items(new_items(120)) == 120
            return [item.id async for item in client.scan(where={"id": {"lt": 70}})]

    assert asyncio.run(talk()) == list(range(70))
