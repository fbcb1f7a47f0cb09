"""The load generator of bench_serve, a process of its own so that it takes no time from the server's.

    python bench_serve_load.py REQUEST_FILE PORT SECONDS --clients 16        closed loop
    python bench_serve_load.py REQUEST_FILE PORT SECONDS --rate 1500         open loop

REQUEST_FILE holds whole HTTP requests as a msgpack list. Prints one JSON object: requests by status, and
their latencies' percentiles in milliseconds; "answers" counts those of the warm-up too. In the open loop a
latency counts from when the request is handed to the system; "lag_p99_ms" says how much later that was than
planned, for want of CPU on this side.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvloop


class Connection(asyncio.Protocol):
    """One keep-alive HTTP/1.1 connection that counts answers, not caring what they say."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.waiting: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self.buffer.lower().find(b"content-length:", 0, head)
        length = int(self.buffer[at + 15 : self.buffer.find(b"\r\n", at)]) if at >= 0 else 0
        if len(self.buffer) >= head + 4 + length and self.waiting is not None:
            status = int(self.buffer[9:12])
            del self.buffer[: head + 4 + length]
            waiting, self.waiting = self.waiting, None
            if not waiting.done():
                waiting.set_result(status)

    def connection_lost(self, error: Exception | None) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(0)

    async def ask(self, request: bytes) -> int:
        self.waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.waiting


async def connect(port: int) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
    return connection


@dataclass
class Outcome:
    """Latencies by status, how late requests were sent, and the number of all answers, in seconds."""

    latencies: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    lags: list[float] = field(default_factory=list)
    answers: int = 0


async def closed_loop(requests: list[bytes], port: int, seconds: float, clients: int) -> Outcome:
    """Each client sends its next request when the last one was answered."""
    outcome = Outcome()
    warm_until = time.perf_counter() + min(1.0, seconds / 4)
    until = warm_until + seconds

    async def client(number: int) -> None:
        connection = await connect(port)
        at = number
        while (started := time.perf_counter()) < until:
            status = await connection.ask(requests[at % len(requests)])
            at += clients
            outcome.answers += 1
            if started >= warm_until:
                outcome.latencies[status].append(time.perf_counter() - started)
            if connection.transport.is_closing():
                connection = await connect(port)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return outcome


async def open_loop(requests: list[bytes], port: int, seconds: float, rate: float) -> Outcome:
    """Requests come at their own rate, however slowly they are answered."""
    outcome = Outcome()
    free: list[Connection] = []
    running: set[asyncio.Task[None]] = set()

    async def one(request: bytes, sent: float) -> None:
        try:
            connection = free.pop() if free else await connect(port)
            status = await connection.ask(request)
        except OSError:
            outcome.latencies[0].append(time.perf_counter() - sent)
            return
        outcome.latencies[status].append(time.perf_counter() - sent)
        outcome.answers += 1
        if not connection.transport.is_closing():
            free.append(connection)

    started = time.perf_counter()
    for number in range(round(rate * seconds)):
        due = started + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        sent = time.perf_counter()
        outcome.lags.append(sent - due)
        task = asyncio.create_task(one(requests[number % len(requests)], sent))
        running.add(task)
        task.add_done_callback(running.discard)
    if running:
        await asyncio.wait(running, timeout=30)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("requests", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--rate", type=float)
    given = parser.parse_args()
    requests = msgspec.msgpack.decode(given.requests.read_bytes(), type=list[bytes])
    if given.rate:
        run = open_loop(requests, given.port, given.seconds, given.rate)
    else:
        run = closed_loop(requests, given.port, given.seconds, given.clients)
    gc.disable()
    outcome = uvloop.run(run)
    result: dict[str, Any] = {
        str(status): {
            "count": len(values),
            "per_second": len(values) / given.seconds,
            "p50_ms": float(np.percentile(values, 50)) * 1000,
            "p99_ms": float(np.percentile(values, 99)) * 1000,
            "max_ms": max(values) * 1000,
        }
        for status, values in outcome.latencies.items()
    }
    if outcome.lags:
        for figures in result.values():
            figures["lag_p99_ms"] = float(np.percentile(outcome.lags, 99)) * 1000
    result["answers"] = outcome.answers
    print(json.dumps(result))


if __name__ == "__main__":
    main()
