"""What every test shares: one torch thread a worker, so that two workers do not fight over two cores."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch

from tests.forked import Forked

ROOT = Path(__file__).parents[1]

# Lightning's remarks on a Trainer with plain loaders; what `kindred fit` prints is not among them.
PLAIN_LOADERS = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`weights_only` was not set"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first: one that began last would keep the other workers waiting."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


torch.set_num_threads(1)

# A service that a test starts does not measure which backend is fastest.
os.environ.setdefault("KINDRED_BACKEND", "eager")

# pytorch-metric-learning has faiss replace its search methods, and the replacements drop search parameters:
# milvus-lite cannot live in one process with that.
sys.modules["faiss.contrib.torch_utils"] = ModuleType("faiss.contrib.torch_utils")

# Shells start background commands with Ctrl-C ignored, and children inherit that; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _logs_reach_caplog() -> None:
    """The service sends its logs to standard error alone; a test that started it leaves that behind."""
    for name in ("kindred", "uvicorn"):
        logging.getLogger(name).propagate = True
        logging.getLogger(name).handlers = []


@pytest.fixture(autouse=True)
def _environment_is_restored() -> Iterator[None]:
    """A distributed run leaves LOCAL_RANK there, with which a later one would wait for others forever."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def _kernels_are_decided_anew() -> Iterator[None]:
    """A training run turns the fused kernels on for its process; what follows begins without them."""
    yield
    if (native := sys.modules.get("models.renorm.native")) is not None:
        native._state["enabled"] = None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real image sets named by KINDRED_DATA; skips where it is absent."""
    folder = Path(os.environ.get("KINDRED_DATA", "")).expanduser()
    if not os.environ.get("KINDRED_DATA") or not (folder / "omniglot").is_dir():
        pytest.skip("KINDRED_DATA names no folder with the real image sets")
    return folder


@pytest.fixture
def start_kindred(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Forked]]:
    """Starts commands in processes of their own: start_kindred(arguments, folder=ROOT, ...); see Forked."""
    started: list[Forked] = []

    def start(arguments: Sequence[str], folder: Path = ROOT, **options: Any) -> Forked:
        started.append(Forked(arguments, tmp_path_factory.mktemp("printed"), folder, **options))
        return started[-1]

    yield start
    for one in started:
        if one.running:
            one.process.kill()
        one.wait()
