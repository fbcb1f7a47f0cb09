"""One process and two give the same losses and gradients on the same global batch."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch

WORKER = Path(__file__).with_name("distributed_worker.py")
ROOT = Path(__file__).parents[2]

Run = dict[str, list[dict[str, torch.Tensor]]]


def in_this_process() -> Run:
    spec = importlib.util.spec_from_file_location("distributed_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    both: Run = worker.train_both(0, 1)
    return both


def in_two_processes(folder: Path) -> list[Run]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), "2", str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_equal_one_over_five_steps(tmp_path: Path) -> None:
    """Triplets span the processes, normalization statistics too: within 1e-8 in float64."""
    one = in_this_process()
    for rank, two in enumerate(in_two_processes(tmp_path)):
        for kind, records in one.items():
            assert 0 < float(records[0]["loss"]) != float(records[4]["loss"])
            for step, (expected, found) in enumerate(zip(records, two[kind], strict=True)):
                assert expected.keys() == found.keys()
                for name, value in expected.items():
                    error = float((value - found[name]).abs().max())
                    assert error < 1e-8, f"{kind}, rank {rank}, step {step}, {name}: {error}"
