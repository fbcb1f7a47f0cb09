"""A small untrained model, images, and the service running on a port of its own."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

from models.bundle import Bundle
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import DecodeLimits, Preprocess
from serve.api.app import create_app
from serve.client import Client
from serve.server import address_of, bind, config_of, open_collections
from serve.service import Service
from serve.settings import Settings
from serve.store.types import Store

DIM = 32
LIMITS = DecodeLimits(max_bytes=2**20, max_pixels=1_000_000)


def make_bundle(seed: int = 0, dim: int = DIM) -> Bundle:
    torch.manual_seed(seed)
    architecture = Architecture(backbone="conv4", backbone_args={"width": 16}, embedding_dim=dim)
    return Bundle(
        EmbeddingNetwork(architecture),
        architecture,
        Preprocess(size=32, limits=LIMITS),
        thresholds={"0.01": 0.5, "0.001": 0.9},
    )


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """An untrained network: its vectors are as good as any for everything but the quality of the search."""
    return make_bundle()


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """Makes an encoded image; the same seed gives the same pixels."""

    def make(seed: int = 0, size: tuple[int, int] = (48, 40), form: str = "PNG", **options: Any) -> bytes:
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST)
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        return buffer.getvalue()

    return make


@dataclass
class Running:
    """A service on a port."""

    address: str
    service: Service
    settings: Settings

    @property
    def store(self) -> Store:
        """The default collection."""
        return self.service.catalogue.collection(self.settings.collection)

    def client(self, key: str | None = None, **options: Any) -> Client:
        return Client(self.address, key, **options)


@contextmanager
def serving(bundle: Bundle, folder: Path, **options: Any) -> Iterator[Running]:
    """Runs the real thing: uvicorn in a thread, a store in ``folder``."""
    places = {"store": folder / "store", "bundle": folder / "bundle"}
    settings = Settings(**{**places, "recall_seconds": 0, **options})
    listener = bind("127.0.0.1", 0)
    app = create_app(settings, bundle, open_collections(settings, bundle))
    server = uvicorn.Server(config_of(app, settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    address = address_of(listener)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Running(address, app.state.service, settings)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def start(bundle: Bundle, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts services with settings of the test's own; they end with the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(serving(bundle, tmp_path, **options))


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A service with default settings, shared by the tests of a file; ``milvus``: its store is in Milvus."""
    folder = tmp_path_factory.mktemp("service")
    options = {"store": f"file:{folder / 'lite'}"} if getattr(request, "param", "folder") == "milvus" else {}
    with serving(bundle, folder, **options) as service:
        yield service


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Bundle]:
    """Makes further untrained models, one a seed."""
    return make_bundle
