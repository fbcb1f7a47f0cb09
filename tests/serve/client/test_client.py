"""The client against a scripted server: retries, errors, and the twin of each method."""

import asyncio
import inspect
from types import MappingProxyType

import httpx
import pytest

from serve.client import AsyncClient, Client, Retries, ServiceError, requests
from serve.schemas import NewItem

QUICK = Retries(attempts=4, first_seconds=0.001, longest_seconds=2)
MODEL = {"fingerprint": "f", "dim": 3, "size": 32, "mode": "RGB", "thresholds": {}, "info": {}}


def scripted(*script):
    """A transport that plays ``script`` (statuses or exceptions), and the list of what it was asked."""
    asked = []
    steps = iter(script)

    def play(request):
        asked.append(request)
        step = next(steps)
        if isinstance(step, Exception):
            raise step
        status, headers = step if isinstance(step, tuple) else (step, {})
        problem = {"type": "urn:kindred:problem:x", "title": "x", "status": status, "detail": "why"}
        return httpx.Response(status, json=MODEL if status == 200 else problem, headers=headers)

    return httpx.MockTransport(play), asked


def make(transport, retries=QUICK):
    client = Client("http://service", "secret", retries=retries)
    client._http = httpx.Client(transport=transport, base_url="http://service", headers=client._http.headers)
    return client


@pytest.mark.parametrize("trouble", [429, 502, 503, 504, httpx.ConnectError("no"), httpx.ReadTimeout("slow")])
def test_passing_trouble_is_tried_again(trouble):
    transport, asked = scripted(trouble, trouble, 200)
    assert make(transport).model().fingerprint == "f"
    assert len(asked) == 3
    assert asked[0].headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 500, 507])
def test_other_trouble_is_not(status):
    transport, asked = scripted(status, 200)
    with pytest.raises(ServiceError, match="why") as error:
        make(transport).model()
    assert (error.value.status, error.value.code, len(asked)) == (status, "x", 1)


def test_trouble_that_stays_is_reported_after_the_last_try():
    transport, asked = scripted(*[503] * 9)
    with pytest.raises(ServiceError) as error:
        make(transport).model()
    assert (error.value.status, len(asked)) == (503, 4)
    transport, asked = scripted(*[httpx.ConnectError("refused")] * 9)
    with pytest.raises(ServiceError, match=r"http://service.*refused") as error:
        make(transport).model()
    assert (error.value.status, len(asked)) == (0, 4)


def test_retry_after_is_honoured():
    asked_for = httpx.Response(429, headers={"retry-after": "1"})
    assert QUICK.pause(1, asked_for) == 1
    assert QUICK.pause(1, httpx.Response(429, headers={"retry-after": "3"})) is None
    assert 0.0005 <= QUICK.pause(1, httpx.Response(503)) <= 0.001
    assert 0.002 <= QUICK.pause(3, None) <= 0.004
    assert QUICK.pause(4, None) is None


def test_an_answer_that_is_no_problem_document_is_still_an_error():
    transport = httpx.MockTransport(lambda _request: httpx.Response(404, text="<html>"))
    with pytest.raises(ServiceError, match="404"):
        make(transport).model()


@pytest.mark.parametrize("page", ["<html>", "", "[]"])
def test_an_answer_of_something_else_is_an_error_in_one_line(page):
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, text=page))
    for ask in (
        Client.model,
        Client.stats,
        lambda client: client.import_items([NewItem(id=1, vector=[1.0])]),
    ):
        with pytest.raises(ServiceError, match="check the address"):
            ask(make(transport))


def test_what_is_encoded_wrongly_is_an_error_in_one_line():
    broken = {"content-encoding": "gzip"}
    transport = httpx.MockTransport(
        lambda _request: httpx.Response(200, headers=broken, stream=httpx.ByteStream(b"not gzip"))
    )
    with pytest.raises(ServiceError, match="no answer"):
        make(transport).model()


def test_any_mapping_is_a_filter_or_metadata():
    where = MappingProxyType({"metadata.year": MappingProxyType({"lt": 3})})
    text = '{"metadata.year":{"lt":3}}'
    assert requests.search_image(b"", where=where).data["filter"] == text
    assert requests.page(where=where).params["filter"] == text
    assert requests.upsert(b"", metadata=where).data["metadata"] == text
    for call in (requests.search_vector([1.0], where=where), requests.delete(where=where)):
        assert f'"filter":{text}' in call.content.decode()
    assert requests.change(1, where).content.decode() == text


def test_every_operation_is_a_method_that_tells_what_it_takes():
    operations = {
        name: value
        for name, value in vars(requests).items()
        if inspect.isfunction(value) and value.__module__ == requests.__name__ and name[0] != "_"
    }
    del operations["import_block"]  # a part of import_items
    assert len(operations) == 28
    for name, operation in operations.items():
        taken = inspect.signature(operation)
        for kind in (Client, AsyncClient):
            method = getattr(kind, name)
            shown = inspect.signature(method)
            assert list(shown.parameters) == ["self", *taken.parameters], name
            assert taken.return_annotation == requests.Call[shown.return_annotation], name
            assert (method.__name__, method.__doc__) == (name, operation.__doc__)
            assert method.__doc__


def test_both_clients_offer_the_same():
    def public(kind):
        return {name: member for name, member in inspect.getmembers(kind, callable) if name[0] != "_"}

    sync, aio = public(Client), public(AsyncClient)
    assert sync.keys() == aio.keys()
    for name in sync:
        one, other = inspect.signature(sync[name]), inspect.signature(aio[name])
        assert one.parameters == other.parameters, name
        if inspect.isgeneratorfunction(sync[name]):
            assert inspect.isasyncgenfunction(aio[name]), name
        else:
            assert inspect.iscoroutinefunction(aio[name]), name
            assert one == other, name


def test_the_asynchronous_client_talks_to_the_real_service(running, picture, tmp_path):
    file = tmp_path / "picture.png"
    file.write_bytes(picture(1))

    async def talk():
        async with AsyncClient(running.address) as client:
            await client.upsert(file, "a", label="cat")
            answers = await asyncio.gather(*(client.search_image(picture(1), k=1) for _ in range(8)))
            assert {answer.hits[0].id for answer in answers} == {"a"}
            assert (await client.get("a")).label == "cat"
            assert await client.delete(["a"]) == 1
            assert await client.get("a") is None

    asyncio.run(talk())


def test_nobody_answers():
    with (
        Client("http://127.0.0.1:9", retries=Retries(attempts=1)) as client,
        pytest.raises(ServiceError, match="no answer"),
    ):
        client.model()


def test_a_thumbnail_is_bytes(running, picture):
    with running.client() as client:
        client.upsert(picture(3), "with/thumbnail")
        assert client.thumbnail("with/thumbnail").startswith(b"\xff\xd8")
        with pytest.raises(ServiceError) as error:
            client.thumbnail("nothing")
    assert error.value.status == 404
