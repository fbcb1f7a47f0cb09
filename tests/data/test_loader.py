import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data.augment import PRESETS
from data.dataset import Batch, ImageDataset
from data.loader import EvaluationBatches, ImageLoader
from data.sampling import PKBatchSampler
from data.sources import FolderSource
from data.table import ImageTable
from models.preprocess import Preprocess


@pytest.fixture
def table(write_folder: Callable[..., Path]) -> ImageTable:
    return FolderSource(write_folder(dict.fromkeys("abcdef", 4))).table()


def training(table: ImageTable, workers: int = 0, seed: int = 0, **processes: int) -> ImageLoader:
    data = ImageDataset(
        table,
        np.arange(len(table)),
        table.labels,
        Preprocess(8),
        augment=PRESETS["products"],
        replace_corrupt=True,
    )
    p = 4 // processes.get("world_size", 1)
    return ImageLoader(
        data, PKBatchSampler(data.labels, p, 2, 5, seed, **processes), seed=seed, num_workers=workers
    )


def evaluation(table: ImageTable, size: int = 5, **processes: int) -> ImageLoader:
    data = ImageDataset(table, np.arange(len(table)), table.labels, Preprocess(8))
    return ImageLoader(data, EvaluationBatches(len(table), size, **processes))


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[key], b[key])
        for a, b in zip(one, other, strict=True)
        for key in ("image", "label", "index")
    )


def test_workers_change_nothing(table: ImageTable) -> None:
    alone = training(table)
    helped = training(table, workers=2)
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        helped.set_epoch(epoch)
        assert same(list(alone), list(helped))


def test_epochs_and_seeds_differ(table: ImageTable) -> None:
    loader = training(table)
    first = list(loader)
    loader.set_epoch(1)
    assert not same(list(loader), first)
    assert not same(list(training(table, seed=1)), first)
    loader.set_epoch(0)
    assert same(list(loader), first)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_counts_what_was_handed_out(table: ImageTable, workers: int) -> None:
    whole = training(table)
    whole.set_epoch(3)
    expected = list(whole)
    stopped = training(table, workers)
    stopped.set_epoch(3)
    batches = iter(stopped)
    next(batches)
    next(batches)  # with workers, later ones are prefetched by now
    state = stopped.state_dict()
    assert (state["epoch"], state["consumed"]) == (3, 2)
    resumed = training(table, workers)
    resumed.load_state_dict(state)
    resumed.set_epoch(3)
    assert len(resumed) == 5
    assert same(list(resumed), expected[2:])
    resumed.set_epoch(4)
    whole.set_epoch(4)
    assert same(list(resumed), list(whole)), "only the epoch that was interrupted starts late"


def test_a_finished_epoch_resumes_with_the_next(table: ImageTable) -> None:
    loader = training(table)
    list(loader)
    resumed = training(table)
    resumed.load_state_dict(loader.state_dict())
    resumed.set_epoch(1)
    assert len(list(resumed)) == 5


def test_processes_share_a_batch_and_its_augmentation(table: ImageTable) -> None:
    whole = list(training(table))
    parts = [list(training(table, rank=rank, world_size=2)) for rank in (0, 1)]
    for number, batch in enumerate(whole):
        for key in ("image", "label", "index"):
            assert torch.equal(torch.cat([part[number][key] for part in parts]), batch[key])


def test_evaluation_sees_every_image_once(table: ImageTable) -> None:
    loader = evaluation(table)
    batches = list(loader)
    assert len(batches) == len(loader) == 5
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(24))
    assert torch.cat([batch["label"] for batch in batches]).tolist() == table.labels.tolist()


def test_processes_evaluate_equally_many_batches(table: ImageTable) -> None:
    parts = [list(evaluation(table, 2, rank=rank, world_size=5)) for rank in range(5)]
    assert {len(part) for part in parts} == {3}
    seen = [i for part in parts for batch in part for i in batch["index"].tolist()]
    assert set(seen) == set(range(24))
    assert len(seen) == 25


def test_corrupt_images_are_reported_once(table: ImageTable, caplog: pytest.LogCaptureFixture) -> None:
    (table.roots[0] / "a" / "001.png").write_text("no image")
    for name in ("000", "001", "002", "003"):
        (table.roots[0] / "f" / f"{name}.png").write_bytes(b"")
    loader = evaluation(table, 4)
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
        list(loader)
    assert len(loader.corrupt) == 5
    assert len(batches) == 5, "a batch of nothing is not handed out"
    assert len([r for r in caplog.records if "skipped a corrupt image" in r.message]) == 5
    assert "a/001.png" in caplog.text


def test_of_many_corrupt_images_the_first_are_named(
    write_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    root = write_folder({"a": 30, "b": 1})
    for path in (root / "a").iterdir():
        path.write_bytes(b"")
    loader = evaluation(FolderSource(root).table(), 4)
    list(loader)
    assert len(loader.corrupt) == 30
    assert len(caplog.records) == 21
    assert "further corrupt images are skipped" in caplog.text


def test_reports_come_out_of_workers(table: ImageTable) -> None:
    (table.roots[0] / "a" / "001.png").write_text("no image")
    loader = training(table, workers=2)
    for epoch in range(3):
        loader.set_epoch(epoch)
        for batch in loader:
            assert len(batch["label"]) == 8
            assert not (batch["index"] == 1).any()
    assert list(loader.corrupt) == ["a/001.png"]


def test_waiting_is_measured(table: ImageTable) -> None:
    loader = training(table)
    assert loader.wait_share == 0
    list(loader)
    assert 0 < loader.wait_share <= 1
    assert loader.wait_seconds <= loader.total_seconds
