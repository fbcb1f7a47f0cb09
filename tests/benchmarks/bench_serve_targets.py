"""The servers that bench_serve compares, each a process: ``python bench_serve_targets.py NAME …``."""

import argparse
import functools
import importlib.util
from pathlib import Path
from typing import Any

import faiss
import msgspec
import numpy as np
import torch

from models.bundle import Bundle
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess

DIM = 128


def make_bundle() -> Bundle:
    """A small untrained network: speed does not depend on what it learned."""
    torch.manual_seed(0)
    architecture = Architecture(backbone="conv4", embedding_dim=DIM)
    return Bundle(EmbeddingNetwork(architecture), architecture, Preprocess(size=64))


def plain_index(folder: Path, kind: str) -> faiss.Index:
    """The same vectors in a bare FAISS index."""
    return faiss.read_index(str(folder / f"{kind}.faiss"))


def kindred(folder: Path, kind: str, port: int, budget: float) -> None:
    from serve.server import run
    from serve.settings import Settings

    settings = Settings(
        store=folder / kind, port=port, latency_budget_ms=budget, recall_seconds=0, log_level="WARNING"
    )
    run(settings, bundle=make_bundle())


def minimal(folder: Path, kind: str, port: int) -> None:
    """What one writes in an afternoon: FastAPI, pydantic, a FAISS index, labels in a list."""
    import io

    import uvicorn
    from fastapi import FastAPI, File, UploadFile
    from PIL import Image
    from pydantic import BaseModel

    index = plain_index(folder, kind)
    labels = [f"class {row % 97}" for row in range(index.ntotal)]
    bundle = make_bundle()
    app = FastAPI()

    class Query(BaseModel):
        vector: list[float]
        k: int = 10

    class Found(BaseModel):
        id: int
        similarity: float
        label: str

    def search(vector: Any, k: int) -> list[Found]:
        similarities, ids = index.search(np.asarray(vector, np.float32).reshape(1, -1), k)
        return [
            Found(id=int(i), similarity=float(s), label=labels[i])
            for s, i in zip(similarities[0], ids[0], strict=True)
        ]

    @app.post("/vector")
    def by_vector(query: Query) -> list[Found]:
        return search(query.vector, query.k)

    @app.post("/image")
    def by_image(image: UploadFile = File()) -> list[Found]:  # noqa: B008
        picture = Image.open(io.BytesIO(image.file.read()))
        return search(bundle.embed([picture])[0], 10)

    faiss.omp_set_num_threads(1)
    uvicorn.run(app, port=port, log_level="warning")


def echo(folder: Path, kind: str, port: int, *, searching: bool = False) -> None:
    """No server at all: an event loop that answers whatever comes at once, in the size of a raw answer.

    Where it is `searching`, it takes the end of what came for a vector, and answers with what FAISS finds.
    """
    import asyncio

    import uvloop

    index = plain_index(folder, kind) if searching else None
    faiss.omp_set_num_threads(1)

    class Echo(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            body = bytes(256)
            if index is not None:
                similarities, ids = index.search(np.frombuffer(data[-4 * DIM :], np.float32)[np.newaxis], 10)
                body = msgspec.json.encode([ids[0].tolist(), similarities[0].tolist()])
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(run())


def asgi(folder: Path, kind: str, port: int) -> None:
    """A bare function on uvicorn that searches: the most that a service on uvicorn can give."""
    import uvicorn

    index = plain_index(folder, kind)
    faiss.omp_set_num_threads(1)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        similarities, ids = index.search(np.frombuffer(body, np.float32)[np.newaxis], 10)
        body = msgspec.json.encode([ids[0].tolist(), similarities[0].tolist()])
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    uvicorn.run(app, port=port, log_level="warning", access_log=False, lifespan="off")


if importlib.util.find_spec("litserve"):
    import litserve as ls

    class LitApi(ls.LitAPI):  # type: ignore[misc]
        """Vectors in JSON, in LitServe's micro-batches; at module level, for its workers are spawned."""

        def __init__(self, folder: Path, kind: str) -> None:
            super().__init__(max_batch_size=64, batch_timeout=0.001)
            self.folder, self.kind = folder, kind

        def setup(self, device: str) -> None:
            faiss.omp_set_num_threads(1)
            self.index = plain_index(self.folder, self.kind)

        def decode_request(self, request: dict[str, Any]) -> Any:
            return np.asarray(request["vector"], np.float32)

        def batch(self, inputs: list[Any]) -> Any:
            return np.stack(inputs)

        def predict(self, queries: Any) -> Any:
            return list(zip(*self.index.search(np.atleast_2d(queries), 10), strict=True))

        def unbatch(self, output: Any) -> Any:
            return output

        def encode_response(self, found: Any) -> dict[str, Any]:
            similarities, ids = found
            return {"ids": ids.tolist(), "similarities": similarities.tolist()}


def litserve(folder: Path, kind: str, port: int) -> None:
    """LitServe, where it is installed."""
    server = ls.LitServer(LitApi(folder, kind), accelerator="cpu")
    server.run(port=port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=["kindred", "minimal", "litserve", "echo", "thinnest", "asgi"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind")
    parser.add_argument("port", type=int)
    parser.add_argument("--budget", type=float, default=10_000)
    given = parser.parse_args()
    if given.name == "kindred":
        kindred(given.folder, given.kind, given.port, given.budget)
    else:
        thinnest = functools.partial(echo, searching=True)
        others = {
            "minimal": minimal,
            "litserve": litserve,
            "echo": echo,
            "thinnest": thinnest,
            "asgi": asgi,
        }
        others[given.name](given.folder, given.kind, given.port)
