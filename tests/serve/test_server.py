"""The process itself: signals and what they do."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve.client import Client, Retries

ROOT = Path(__file__).parents[2]


@contextmanager
def process(folder):
    """``kindred serve`` in a process of its own; gives it, its address and its log."""
    command = [sys.executable, "-m", "app", "serve", f"--bundle={folder / 'bundle'}", "--port=0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log = folder / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*command, f"--store={folder / 'store'}"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as server,
    ):
        try:
            line = server.stdout.readline()
            yield server, line.split("API: ")[1].split()[0], log
        finally:
            server.kill()


def wait_for(log, words):
    for _ in range(1200):
        if words in log.read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"no {words!r} in {log.read_text()}")


def test_hangup_reloads_and_terminate_ends(tmp_path, make_model, picture):
    model = make_model(0)
    model.save(tmp_path / "bundle")
    with (
        process(tmp_path) as (server, address, log),
        Client(address, retries=Retries(attempts=9)) as client,
    ):
        client.upsert(picture(1), "a")
        model.thresholds = {"0.01": 0.25}
        model.save(tmp_path / "bundle")
        server.send_signal(signal.SIGHUP)
        wait_for(log, "SIGHUP: the model is")
        assert client.model().thresholds == {"0.01": 0.25}

        make_model(1).save(tmp_path / "bundle")  # another model, whose vectors nobody has
        server.send_signal(signal.SIGHUP)
        wait_for(log, "SIGHUP: the model was not reloaded")
        assert client.model().fingerprint == model.fingerprint
        assert client.search_image(picture(1), k=1).hits[0].id == "a"

        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == -signal.SIGTERM  # uvicorn ends as the signal asks, when all is closed
        assert "Application shutdown complete" in log.read_text()
