"""Hostile clients beside honest ones: slow senders, idle connections, endless heads, deep and long JSON.

    PYTHONPATH=. python tests/soak/hostile.py --seconds 20

The service runs in a process of its own, with `ulimit -n 1024`. Honest clients search by image and by vector,
and ask for /healthz, first alone, then beside the hostile ones, twice each. Prints the honest clients' median
and 99th percentile and their failures; ends with 1 if one of them failed, or waited for over three seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from models.bundle import Bundle
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess
from serve.server import run
from serve.settings import Settings

DIM = 32
MOST_SECONDS = 3.0


def serve(folder: Path, pipe: Any) -> None:
    """The service, with few open files allowed."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    torch.manual_seed(0)
    architecture = Architecture(backbone="conv4", backbone_args={"width": 16}, embedding_dim=DIM)
    bundle = Bundle(EmbeddingNetwork(architecture), architecture, Preprocess(size=32))
    settings = Settings(store=folder / "store", port=0, recall_seconds=0, log_level="ERROR")
    run(settings, bundle=bundle, on_start=pipe.send)


async def honest(address: str, seconds: float) -> tuple[list[float], list[str]]:
    """Seconds of each request of some honest clients, and what went wrong."""
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    image, vector = buffer.getvalue(), rng.standard_normal(DIM).astype("<f4")
    took: list[float] = []
    errors: list[str] = []
    ends = time.monotonic() + seconds

    async def client(number: int) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=30) as http:
            while time.monotonic() < ends:
                started = time.perf_counter()
                try:
                    if number == 0:
                        answer = await http.get("/healthz")
                    elif number % 2:
                        answer = await http.post("/v1/search", files={"image": image})
                    else:
                        answer = await http.post("/v1/search/vector", json={"vector": vector.tolist()})
                    if answer.status_code != 200:
                        errors.append(answer.text)
                except httpx.HTTPError as error:
                    errors.append(repr(error))
                took.append(time.perf_counter() - started)
                await asyncio.sleep(0.02)

    await asyncio.gather(*(client(number) for number in range(5)))
    return took, errors


async def open_and(
    act: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], port: int
) -> None:
    """Connect, misbehave, and begin again when the server ends it."""
    while True:
        writer = None
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await act(reader, writer)
        if writer is not None:
            writer.close()
        await asyncio.sleep(0.1)


def head(path: str, length: int, kind: str = "application/json") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


async def slow_upload(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A byte of an image now and then."""
    writer.write(head("/v1/search", 10_000, "image/png"))
    while not reader.at_eof():
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(5)


async def idle(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Nothing at all."""
    await reader.read()


async def endless_head(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Header after header."""
    writer.write(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n")
    while True:
        writer.write(b"x-more: " + b"a" * 60_000 + b"\r\n")
        await writer.drain()


async def post(
    writer: asyncio.StreamWriter, reader: asyncio.StreamReader, body: bytes, kind: str, path: str
) -> None:
    writer.write(head(path, len(body), kind) + body)
    await writer.drain()
    await reader.readuntil(b"\r\n\r\n")


async def long_json(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sixteen megabytes of numbers."""
    body = b'{"vectors":[[' + b"0," * (8 * 2**20) + b"0]]}"
    await post(writer, reader, body, "application/json", "/v1/search/vector")


async def deep_json(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Lists of lists of lists."""
    levels = random.choice([500, 5_000, 500_000])
    line = json.dumps({"id": 1, "vector": [0.5] * DIM, "metadata": {"a": 1}}).replace(
        "1}", "[" * levels + "]" * levels + "}"
    )
    await post(writer, reader, line.encode(), "application/json", "/v1/import")


async def many_parts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Eight megabytes of tiny form fields."""
    part = b"--x\r\ncontent-disposition: form-data; name=a\r\n\r\n\r\n"
    body = part * (8 * 2**20 // len(part)) + b"--x--"
    await post(writer, reader, body, "multipart/form-data; boundary=x", "/v1/search")


CROWD = {slow_upload: 80, idle: 1100, endless_head: 2, long_json: 1, deep_json: 1, many_parts: 1}


def misbehave(port: int) -> None:
    """All hostile clients, until the process is ended."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)

    async def crowd() -> None:
        await asyncio.gather(*(open_and(act, port) for act, count in CROWD.items() for _ in range(count)))

    asyncio.run(crowd())


def main() -> int:
    """Alone, beside hostile ones, alone, beside hostile ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20, help="of each of the four parts")
    seconds = parser.parse_args().seconds
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        service = context.Process(target=serve, args=(Path(folder), theirs), daemon=True)
        service.start()
        address = mine.recv()
        port = int(address.rpartition(":")[2])
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{address}/readyz").status_code == 200:
                    break
            time.sleep(0.2)
        for part in range(4):
            hostile = context.Process(target=misbehave, args=(port,), daemon=True)
            if part % 2:
                hostile.start()
                time.sleep(3)
            took, errors = asyncio.run(honest(address, seconds))
            if part % 2:
                hostile.terminate()
                hostile.join()
            milliseconds = np.array(took) * 1000
            name = "beside hostile clients" if part % 2 else "honest clients alone"
            print(
                f"{name}: {len(took)} requests, median {np.median(milliseconds):.1f} ms, 99th percentile "
                f"{np.percentile(milliseconds, 99):.1f} ms, longest {milliseconds.max():.0f} ms, "
                f"{len(errors)} failed {errors[:1]}"
            )
            failed |= bool(errors) or max(took) > MOST_SECONDS
        service.terminate()
        service.join()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
