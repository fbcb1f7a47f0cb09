"""One process and two give the same losses and gradients on the same global batch, and gather the same
rows.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("distributed_worker.py")
ROOT = Path(__file__).parents[2]


def run(folder: Path, world_size: int, memory: int) -> list[list[dict[str, torch.Tensor]]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(world_size), str(folder), str(memory)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return [torch.load(folder / f"{world_size}-{rank}.pt", weights_only=True) for rank in range(world_size)]


@pytest.mark.parametrize("memory", [0, 60], ids=["batch", "cross-batch memory"])
def test_two_processes_equal_one_over_five_steps(tmp_path: Path, memory: int) -> None:
    """Triplets span the processes, normalization statistics too: within 1e-8 in float64."""
    (one,) = run(tmp_path, 1, memory)
    two = run(tmp_path, 2, memory)
    assert float(one[0]["loss"]) > 0
    assert float(one[-2]["loss"]) != float(one[0]["loss"])
    for rank, records in enumerate(two):
        for step, (expected, found) in enumerate(zip(one, records, strict=True)):
            assert expected.keys() == found.keys()
            for name, value in expected.items():
                error = float((value - found[name]).abs().max())
                assert error < 1e-8, f"rank {rank}, step {step}, {name}: {error}"
