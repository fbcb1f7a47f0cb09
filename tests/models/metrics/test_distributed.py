"""One process and two processes give identical numbers; padded items count once."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from models.metrics import evaluate_retrieval, gather_by_index
from models.metrics.exact_retrieval import EVERY_METRIC


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 90, 701)  # odd, and classes of many sizes
    labels[:150] = 0
    return rng.normal(size=(90, 6))[labels] + rng.normal(size=(701, 6)), labels


def on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    vectors, labels = data()
    result = evaluate_retrieval(vectors, labels, metrics=EVERY_METRIC, distributed=True)
    mine = torch.tensor([[0, 2, 4, 6], [1, 3, 5, 0, 2, 1]][rank])  # a sampler padded with repeats
    gathered = gather_by_index(mine[:, None].float().repeat(1, 3), mine * 10, mine)
    torch.save(
        {"result": (result.rows, result.values, result.tied), "gathered": gathered}, f"{folder}/{rank}.pt"
    )
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(on_rank, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_equal_one(ranks: list[dict[str, Any]]) -> None:
    vectors, labels = data()
    alone = evaluate_retrieval(vectors, labels, metrics=EVERY_METRIC)
    for rank in ranks:
        rows, values, tied = rank["result"]
        assert torch.equal(rows, alone.rows)
        assert torch.equal(tied, alone.tied)
        for name in alone.values:
            assert torch.equal(values[name], alone.values[name]), name


def test_gathering_keeps_each_item_once(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        vectors, labels, index = rank["gathered"]
        assert index.tolist() == [0, 1, 2, 3, 4, 5, 6]
        assert labels.tolist() == [0, 10, 20, 30, 40, 50, 60]
        assert vectors[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
