"""A service with ``backend: auto`` serves at once, and changes to the fastest backend when that is known."""

import asyncio
import logging
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from models.bundle import Bundle
from models.inference import choice
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess
from serve import measuring
from serve.service import load_bundle
from serve.settings import Settings
from serve.store.catalogue import Catalogue


def wait_until(true):
    for _ in range(1200):
        if true():
            return
        time.sleep(0.05)
    pytest.fail("waited for a minute")


@pytest.fixture
def settings(tmp_path):
    return Settings(bundle=tmp_path / "bundle", device="cpu", backend="auto")


@pytest.fixture
def bundle(settings, make_model, tmp_path, monkeypatch):
    """A model as a first start loads it; without a compiler, which would take long."""
    monkeypatch.setenv("KINDRED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "no-compiler")
    make_model(0).save(settings.bundle)
    return load_bundle(settings)


def measure(settings, monkeypatch):
    """Fill the cache; ONNX Runtime is the fastest."""
    monkeypatch.setattr(choice, "measure", lambda *_: {"eager": {1: 1.0}, "onnx": {1: 2.0}})
    torch.set_num_threads(settings.threads_of_network())
    Bundle.load(settings.bundle, settings.device).optimize()


BACKBONE = """
from torch import nn

class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


class Measurement:
    """Stands in for the process that measures, and ends when the test says so."""

    def __init__(self):
        self.begun = 0

    async def __call__(self, _settings):
        self.loop, self.end = asyncio.get_running_loop(), asyncio.Event()
        self.begun += 1
        await self.end.wait()

    def finish(self):
        self.loop.call_soon_threadsafe(self.end.set)


@pytest.fixture
def measurement(monkeypatch):
    stand_in = Measurement()
    monkeypatch.setattr("serve.service.measure_backends", stand_in)
    return stand_in


def test_searches_are_answered_until_the_fastest_backend_takes_over(
    start, settings, measurement, picture, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "kindred.serve")
    with start(backend="auto").client() as client:
        client.upsert(picture(1), "a")
        assert client.search_image(picture(1), k=1).hits[0].id == "a"
        model = client.model()
        assert (model.backend, model.choice["provisional"]) == ("eager", True)
        assert model.choice["images_per_second"] == {}
        measure(settings, monkeypatch)
        measurement.finish()
        wait_until(lambda: "backend eager → onnx, images a second by batch size: {" in caplog.text)
        assert client.search_image(picture(1), k=1).hits[0].id == "a"
        for _ in range(2):
            model = client.model()
            assert (model.backend, model.choice["provisional"]) == ("onnx", False)
            assert set(model.choice["images_per_second"]) == {"eager", "onnx"}
            client.reload()  # takes what is known by now
    assert measurement.begun == 1
    assert f"model {model.fingerprint} runs on eager until" in caplog.text


def test_a_start_takes_the_known_choice(settings, bundle, monkeypatch):
    assert bundle.choice.provisional
    measure(settings, monkeypatch)
    known = load_bundle(settings)
    assert (known.backend, known.choice.provisional) == ("onnx", False)


def test_a_cache_that_cannot_be_written_leaves_eager_without_a_measurement(settings, bundle, monkeypatch):
    monkeypatch.setenv("KINDRED_CACHE", str(settings.bundle / "bundle.json"))
    final = load_bundle(settings)
    assert (final.backend, final.choice.provisional) == ("eager", False)


def test_a_model_that_a_reload_brings_meanwhile_gets_a_measurement_of_its_own(
    start, settings, bundle, measurement, make_model, tmp_path, monkeypatch, caplog
):
    new = make_model(1)
    with Catalogue(tmp_path / "store") as catalogue:
        for name, model in {"first": bundle, "second": new}.items():
            catalogue.create(name, model.dim, model.fingerprint)
        catalogue.set_alias("current", "first")
    with start(collection="current", backend="auto").client() as client:
        measure(settings, monkeypatch)
        new.save(settings.bundle)
        client.reload("current", "second")
        assert measurement.begun == 1
        measurement.finish()
        wait_until(lambda: measurement.begun == 2)
        model = client.model()
        assert (model.fingerprint, model.backend) == (new.fingerprint, "eager")
        measure(settings, monkeypatch)
        measurement.finish()
        wait_until(lambda: client.model().backend == "onnx")
        assert client.model().fingerprint == new.fingerprint
    assert "stays" not in caplog.text


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise MemoryError('too little')", "the measuring process ended early (MemoryError: too little)"),
        ("import os; os.kill(os.getpid(), 9)", "the measuring process ended early (signal 9)"),
        ("pass", "bundle holds another model than the one in use; reload it"),
    ],
)
def test_a_failed_measurement_leaves_the_backend_in_use(start, picture, monkeypatch, caplog, code, reason):
    monkeypatch.setattr(measuring, "COMMAND", (sys.executable, "-c", code))
    with start(backend="auto").client() as client:
        wait_until(lambda: "backend eager stays: " in caplog.text)
        assert reason in caplog.text
        assert client.model().backend == "eager"
        client.upsert(picture(1), "a")
        assert client.search_image(picture(1), k=1).hits[0].id == "a"


@pytest.mark.slow
def test_the_process_measures_for_the_service(settings, tmp_path, monkeypatch):
    """With its thread count and its trust; without its web framework."""
    monkeypatch.setenv("KINDRED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "no-compiler")
    check = "import runpy, sys; runpy.run_module('serve.measuring', run_name='__main__'); "
    check += "assert not {'fastapi', 'starlette', 'uvicorn'} & {*sys.modules}"
    monkeypatch.setattr(measuring, "COMMAND", (sys.executable, "-P", "-c", check))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_backbone.py").write_text(BACKBONE)
    architecture = Architecture("my_backbone.Small", embedding_dim=4)
    network = EmbeddingNetwork(architecture, trust_code=True)
    Bundle(network, architecture, Preprocess(size=32)).save(settings.bundle)
    settings = settings.model_copy(update={"trust_code": True, "network_threads": 2})
    asyncio.run(measuring.measure_backends(settings))
    made = load_bundle(settings).choice
    assert not made.provisional
    assert made.images_per_second.keys() == {"eager", "onnx"}


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_stays_behind(settings, bundle, start_kindred, tmp_path, end):
    arguments = ["serve", f"--bundle={settings.bundle}", f"--store={tmp_path / 'store'}", "--port=0"]
    service = start_kindred([*arguments, "--backend=auto", "--log-level=INFO"], tmp_path)
    wait_until(lambda: "runs on eager until" in service.err)
    pid = service.process.pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    wait_until(lambda: b"serve.measuring" in Path(f"/proc/{child}/cmdline").read_bytes())
    service.send(end)
    service.wait()
    wait_until(lambda: not Path(f"/proc/{child}").exists())
    assert not [*(tmp_path / "cache").rglob("choice.json")]  # it was ended, and did not end by itself
