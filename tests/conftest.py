"""What every test shares: one torch thread a worker, so that two workers do not fight over two cores."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real image sets named by KINDRED_DATA; skips where it is absent."""
    folder = Path(os.environ.get("KINDRED_DATA", "")).expanduser()
    if not os.environ.get("KINDRED_DATA") or not (folder / "omniglot").is_dir():
        pytest.skip("KINDRED_DATA names no folder with the real image sets")
    return folder
