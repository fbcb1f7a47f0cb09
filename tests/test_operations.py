"""Every command block of docs/operations.md is executed in order, against a real service.

`systemctl` is played by this test: stop, start and reload do to the process what the unit in deploy/ says.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from app.cli import main
from models.bundle import Bundle
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess
from serve.client import Client, Retries
from tests.forked import Forked

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
PHOTOS = 12


class Operator:
    """Types the page's commands in a folder of their own; `kindred` runs in this process."""

    def __init__(self, folder: Path, start_kindred: Callable[..., Forked]) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        self.folder, self.start_kindred = folder, start_kindred
        self.service: list[str] = []
        self.server: Forked | None = None

    def type(self, line: str) -> None:
        line = line.replace("127.0.0.1:8000", self.address)
        program, *arguments = shlex.split(line)
        if line.startswith("kindred serve"):
            self.service = [*arguments, "--port", self.address.partition(":")[2]]
            self.start()
        elif program == "systemctl":
            getattr(self, arguments[0])()
        elif program == "kindred":
            assert main(arguments) == 0, line
        else:
            done = subprocess.run(["bash", "-euc", line], capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"

    def start(self) -> None:
        self.server = self.start_kindred(self.service, self.folder)
        for _ in range(1200):
            try:
                if httpx.get(f"http://{self.address}/readyz", timeout=20).status_code == 200:
                    return
            except httpx.TransportError:
                assert self.server.running, self.server.err
            time.sleep(0.05)
        pytest.fail("the service never was ready")

    def reload(self) -> None:
        assert self.server is not None
        self.server.send(signal.SIGHUP)

    def stop(self) -> None:
        assert self.server is not None
        self.server.send(signal.SIGTERM)
        assert self.server.wait(30) is not None

    def check(self, collection: str, dim: int) -> None:
        """Every photo is its own nearest neighbour, with its thumbnail."""
        with Client(f"http://{self.address}", retries=Retries(attempts=9)) as client:
            assert client.model().dim == dim
            assert client.collections().aliases == {"live": collection}
            for photo in sorted((self.folder / "photos").glob("*/*.png")):
                (hit,) = client.search_image(photo, k=1).hits
                assert hit.id == str(photo.relative_to(self.folder / "photos"))
                assert hit.similarity > 0.999
                assert client.thumbnail(hit.id)


@pytest.fixture
def operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_kindred: Callable[..., Forked]
) -> Operator:
    for seed, (name, dim) in enumerate({"first": 16, "second": 24}.items()):
        torch.manual_seed(seed)
        architecture = Architecture(backbone="conv4", backbone_args={"width": 8}, embedding_dim=dim)
        preprocess = Preprocess(size=32)
        Bundle(EmbeddingNetwork(architecture), architecture, preprocess).save(tmp_path / "bundles" / name)
    rng = np.random.default_rng(0)
    for number in range(PHOTOS):
        photo = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 48), Image.Resampling.NEAREST).save(photo)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return Operator(tmp_path, start_kindred)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_page_can_be_followed_to_the_letter(operator: Operator) -> None:
    assert len(BLOCKS) == 8
    states = [("first", 16)] * 4 + [("first", 16), ("second", 24), ("second", 24), ("second", 24)]
    for block, (collection, dim) in zip(BLOCKS, states, strict=True):
        for line in block.splitlines():
            operator.type(line)
        operator.check(collection, dim)
    with Client(f"http://{operator.address}") as client:
        assert [one.name for one in client.collections().collections] == ["second"]
        assert client.stats().items == PHOTOS
