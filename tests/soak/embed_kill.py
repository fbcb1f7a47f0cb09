"""Kills `kindred embed` at random moments, resumes it, and compares the result with an undisturbed run's.

    PYTHONPATH=. python tests/soak/embed_kill.py --kills 10

Ids, labels, metadata, rejected images and vectors must be the same, bit for bit, and nothing half-written may
be left. Each time a folder is completed before it could be killed, the next one is begun. With --devices 2
the processes are two, started by the command line as a user would start them, and all of them are killed at
once; vectors are then compared within 1e-6, because threads are divided differently.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

import app.embed.predict  # noqa: F401 - before the forks, so that a run takes no longer than its work
from app.cli import main as command_line
from models.bundle import Bundle
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess

ROOT = Path(__file__).parents[2]


def prepare(folder: Path, images: int) -> list[str]:
    """Writes a small model and images, one in a hundred broken; returns the options that embed them."""
    torch.manual_seed(0)
    architecture = Architecture(backbone="conv4", embedding_dim=32)
    Bundle(EmbeddingNetwork(architecture), architecture, Preprocess(size=28)).save(folder / "bundle")
    rng = np.random.default_rng(0)
    for number in range(images):
        path = folder / "images" / f"class-{number % 50:02d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
        if number % 100 == 7:
            path.write_bytes(path.read_bytes()[:200])
    return [f"--bundle={folder / 'bundle'}", f"--data={folder / 'images'}", "--accelerator=cpu"]


def start(options: list[str], devices: int) -> int:
    """Starts a run in a process group of its own: forked, or by the command line for several devices."""
    if devices > 1:
        command = [sys.executable, "-m", "app", "embed", *options, f"--devices={devices}"]
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL).pid
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(command_line(["embed", *options]))
    return child


def finished(child: int, seconds: float | None) -> bool:
    """Waits for a run; after so many seconds all its processes are killed. Whether it ended by itself."""
    end = time.monotonic() + (seconds if seconds is not None else 1e9)
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, "a run failed"
            return True
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def rows(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


def compare(folder: Path, clean: Path, devices: int) -> None:
    found, right = rows(folder), rows(clean)
    assert found.drop_columns("vector") == right.drop_columns("vector"), "other rows"
    vectors = [table.column("vector").combine_chunks().flatten().to_numpy() for table in (found, right)]
    if devices == 1:
        assert vectors[0].tobytes() == vectors[1].tobytes(), "other vectors"
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-6, "other vectors"
    assert (folder / "rejects.csv").read_bytes() == (clean / "rejects.csv").read_bytes(), "other rejects"
    names = [sorted(path.name for path in place.iterdir()) for place in (folder, clean)]
    assert names[0] == names[1], "other files"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(options.seed)
    kills, midway, half, rounds = 0, 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="kindred-embed-") as name:
        arguments = [*prepare(Path(name), options.images), "--shard-rows=64", "--workers=1"]
        clean = Path(name) / "clean"
        began = time.monotonic()
        finished(start([*arguments, f"--out={clean}"], 1), None)
        seconds = time.monotonic() - began
        print(
            f"undisturbed: {seconds:.1f} s, {json.loads((clean / 'embeddings.json').read_text())['complete']}"
        )
        while kills < options.kills:
            rounds += 1
            folder = Path(name) / f"round-{rounds}"
            work = [*arguments, f"--out={folder}"]
            while not finished(
                start(work, options.devices),
                rng.uniform(0, seconds) if kills < options.kills else None,
            ):
                kills += 1
                names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
                shards = sum(name.endswith(".parquet") for name in names)
                midway += 0 < shards < -(-options.images // 64)
                half += any(name.endswith(".tmp") for name in names)
                print(f"kill {kills}: {shards} shards, {len(names) - shards} other files", flush=True)
            compare(folder, clean, options.devices)
    print(f"{kills} kills, {midway} midway, {half} while a shard was written")
    print(f"{rounds} completed folders, all equal to the undisturbed one")


if __name__ == "__main__":
    main()
