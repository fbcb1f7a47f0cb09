"""What bench_serve measures with: queries, servers in processes of their own, load, limits, the table."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import faiss
import msgspec
import numpy as np
from bench_serve_targets import DIM
from PIL import Image

HERE = Path(__file__).parent
SERVER_CORE, CLIENT_CORE = 0, 1
QUERIES = 4096  # more than any cache of answers would hold
ROWS: list[dict[str, Any]] = []


def vectors_of(count: int, seed: int) -> np.ndarray:
    """(count, DIM) float32 unit vectors in 5,000 clusters."""
    centres = np.random.default_rng(0).standard_normal((5000, DIM), dtype=np.float32)
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(5000, size=count)] + 0.6 * rng.standard_normal((count, DIM), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def picture() -> bytes:
    """A 640 × 480 JPEG with photograph-like detail."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def request(path: str, kind: str, body: bytes) -> bytes:
    """A whole HTTP request."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def upload(path: str) -> list[bytes]:
    start = b'--b\r\ncontent-disposition: form-data; name="image"; filename="a.jpg"\r\n'
    body = start + b"content-type: image/jpeg\r\n\r\n" + picture() + b"\r\n--b--\r\n"
    return [request(path, "multipart/form-data; boundary=b", body)]


class Server:
    """A running server process."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def cpu_seconds(self) -> float:
        """CPU time of the process and of all its children until now."""
        total, waiting = 0.0, [self.process.pid]
        while waiting:
            pid = waiting.pop()
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        return total


@contextmanager
def server(name: str, folder: Path, kind: str, *arguments: str, pinned: bool = False) -> Iterator[Server]:
    """Starts a server process and waits until it accepts connections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            *_bound(SERVER_CORE if pinned else None),
            sys.executable,
            str(HERE / "bench_serve_targets.py"),
            name,
            str(folder),
            kind,
            str(port),
            *arguments,
        ],
        cwd=HERE.parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{name} did not start") from None
                time.sleep(0.1)
        time.sleep(1.0)
        yield Server(process, port)
    finally:
        process.terminate()
        process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers that LitServe leaves behind


def _bound(core: int | None) -> list[str]:
    """What binds a command to a core; nothing where there is only one, or no taskset."""
    if core is None or (os.cpu_count() or 1) < 2 or not shutil.which("taskset"):
        return []
    return ["taskset", "-c", str(core)]


def load(
    folder: Path, requests: list[bytes], target: Server, seconds: float, *arguments: str, pinned: bool = False
) -> dict[str, Any]:
    """Runs the load generator; figures by status, each with the server's CPU time for one answer of any."""
    file = folder / "requests.msgpack"
    file.write_bytes(msgspec.msgpack.encode(requests))
    command = [
        *_bound(CLIENT_CORE if pinned else None),
        sys.executable,
        str(HERE / "bench_serve_load.py"),
        str(file),
        str(target.port),
        str(seconds),
        *arguments,
    ]
    before = target.cpu_seconds()
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE.parents[1])
    used = target.cpu_seconds() - before
    result: dict[str, Any] = json.loads(done.stdout)
    answers = result.pop("answers")  # those of the warm-up too
    for figures in result.values():
        figures["server_cpu_ms"] = 1000.0 * used / answers
    return result


def note(what: str, clients: int | str, figures: dict[str, Any], limit: dict[str, Any] | None = None) -> None:
    """Prints and keeps one row."""
    row = {"what": what, "clients": clients, **figures}
    if limit is not None:
        row["share_of_limit"] = figures["per_second"] / limit["per_second"]
        row["share_by_cpu"] = limit["server_cpu_ms"] / figures["server_cpu_ms"]
    shares = f"{row['share_of_limit']:6.0%} {row['share_by_cpu']:6.0%}" if limit is not None else ""
    print(
        f"{what:44} {clients!s:>6} {figures['per_second']:9.0f}/s  p50 {figures['p50_ms']:7.2f} ms  "
        f"p99 {figures['p99_ms']:7.2f} ms  cpu {figures['server_cpu_ms']:7.3f} ms {shares}",
        flush=True,
    )
    ROWS.append(row)


def in_process(what: str, work: Callable[[], Any], seconds: float, workers: int = 1) -> dict[str, Any]:
    """The limit: the same work in a loop, without HTTP."""

    def loop(until: float) -> list[float]:
        faiss.omp_set_num_threads(1)
        times = []
        while (started := time.perf_counter()) < until:
            work()
            times.append(time.perf_counter() - started)
        return times

    loop(time.perf_counter() + 0.5)
    cpu = time.process_time()
    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(loop, [time.perf_counter() + seconds] * workers))
    cpu = time.process_time() - cpu
    times = np.concatenate(parts)
    figures = {"per_second": len(times) / seconds, "count": len(times)}
    figures |= {"p50_ms": float(np.median(times)) * 1e3, "p99_ms": float(np.percentile(times, 99)) * 1e3}
    figures["server_cpu_ms"] = 1000.0 * cpu / len(times)
    note(f"limit: {what}", workers, figures)
    return figures


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """This thread, and those it starts, on one core."""
    if not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2:
        yield
        return
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, everywhere)
