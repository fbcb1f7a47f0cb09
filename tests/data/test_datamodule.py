"""The data module under Lightning's own loop."""

import multiprocessing
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.tuner import Tuner
from torch import nn
from torchvision.transforms import v2

from data.datamodule import ImageDataModule
from data.grouping import HardClassCurriculum
from data.timing import InputTiming
from models.errors import InputError


class Probe(lightning.LightningModule):
    """Trains a little and writes down what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
        self.seen: list[tuple[int, int, list[int], float]] = []
        self.validated: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def training_step(self, batch: dict[str, torch.Tensor], number: int) -> torch.Tensor:
        loss = self(batch["image"]).square().mean()
        self.seen.append((self.current_epoch, number, batch["index"].tolist(), loss.item()))
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], number: int) -> None:
        self.validated += batch["index"].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class ProbeWithViews(Probe):
    """Its evaluation would cost more than an image's own embedding."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert self.training
        return super().forward(images)

    def without_tta(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images)


class SaveEveryBatch(lightning.Callback):
    """What a kill leaves behind: the checkpoint of the last finished batch, whatever workers prefetched."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.path)


def trainer(folder: Path, **options: Any) -> lightning.Trainer:
    settings = {
        "default_root_dir": folder,
        "max_epochs": 3,
        "logger": False,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
    }
    return lightning.Trainer(**{**settings, **options})


@pytest.fixture
def module(write_folder: Callable[..., Path]) -> Callable[..., ImageDataModule]:
    root = write_folder({f"c{n:02d}": 5 for n in range(16)})

    def make(**options: Any) -> ImageDataModule:
        settings = {
            "source": str(root),
            "image_size": 8,
            "val_fraction": 0.2,
            "classes_per_batch": 4,
            "samples_per_class": 2,
            "batches_per_epoch": 6,
            "augmentation": "products",
            "num_workers": 0,
        }
        return ImageDataModule(**{**settings, **options})

    return make


def test_epochs_differ_and_validation_is_complete(
    module: Callable[..., ImageDataModule], tmp_path: Path
) -> None:
    data, probe = module(), Probe()
    trainer(tmp_path, max_epochs=2).fit(probe, data)
    assert [entry[:2] for entry in probe.seen] == [(e, b) for e in range(2) for b in range(6)]
    assert [e[2] for e in probe.seen[:6]] != [e[2] for e in probe.seen[6:]]
    assert sorted(probe.validated) == sorted(data.parts.rows("val").tolist() * 2)
    assert {i for e in probe.seen for i in e[2]} <= set(data.parts.rows("train").tolist())
    assert 0 < data._train_loader.wait_share < 1


def test_an_unfit_augmentation_is_named_before_training(module: Callable[..., ImageDataModule]) -> None:
    data = module(augmentation=[v2.Normalize([0.5], [0.5])], num_workers=1)
    data.setup("validate")
    with pytest.raises(InputError, match="augmentation: Normalize fails"):
        data.setup("fit")


def test_overfitting_sees_the_same_few_batches_in_every_epoch(
    module: Callable[..., ImageDataModule], tmp_path: Path
) -> None:
    data, probe = module(), Probe()
    trainer(tmp_path, overfit_batches=2).fit(probe, data)
    assert [entry[:2] for entry in probe.seen] == [(e, b) for e in range(3) for b in range(2)]
    batches = [entry[2] for entry in probe.seen]
    assert batches[:2] == batches[2:4] == batches[4:]
    labels = data.table.labels[batches]
    assert all(np.unique(batch, return_counts=True)[1].tolist() == [2, 2, 2, 2] for batch in labels)


def test_lightnings_distributed_sampler_leaves_the_batches_alone(
    module: Callable[..., ImageDataModule], tmp_path: Path
) -> None:
    """What the Trainer would otherwise do to a loader under several processes: exchange its sampler."""
    run = trainer(tmp_path, devices=2, strategy="ddp", use_distributed_sampler=True)
    for loader in (module().train_dataloader(), module().test_dataloader()):
        prepared = run._data_connector._prepare_dataloader(loader, shuffle=True, mode=RunningStage.TRAINING)
        assert prepared is loader


def test_the_batch_size_finder_is_told_what_there_is_to_scale(
    module: Callable[..., ImageDataModule], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="batch_arg_name='classes_per_batch'"):
        Tuner(trainer(tmp_path)).scale_batch_size(Probe(), datamodule=module())
    data = module()
    found = Tuner(trainer(tmp_path)).scale_batch_size(
        Probe(), datamodule=data, batch_arg_name="classes_per_batch", steps_per_trial=1, max_trials=2
    )
    assert found == data.classes_per_batch == 4


@pytest.mark.parametrize(("stop_after", "workers"), [(1, 0), (8, 2), (10, 0)])
def test_an_interrupted_run_resumes_bit_for_bit(
    module: Callable[..., ImageDataModule], tmp_path: Path, stop_after: int, workers: int
) -> None:
    torch.manual_seed(0)
    whole = Probe()
    start = {name: value.clone() for name, value in whole.state_dict().items()}
    trainer(tmp_path).fit(whole, module())

    stopped = Probe()
    stopped.load_state_dict(start)
    saving = SaveEveryBatch(tmp_path / "last.ckpt")
    trainer(tmp_path, callbacks=[saving], max_steps=stop_after).fit(stopped, module(num_workers=workers))

    resumed = Probe()
    trainer(tmp_path).fit(
        resumed,
        module(num_workers=workers),
        ckpt_path=tmp_path / "last.ckpt",
        weights_only=True,
    )
    assert stopped.seen + resumed.seen == whole.seen
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_workers_end_with_the_run(module: Callable[..., ImageDataModule], tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    run = trainer(tmp_path, max_epochs=1)
    run.fit(Probe(), data := module(num_workers=1))
    assert set(multiprocessing.active_children()) == before
    run.validate(Probe(), data, verbose=False)
    assert set(multiprocessing.active_children()) == before


def test_resuming_on_another_split_is_refused(module: Callable[..., ImageDataModule], tmp_path: Path) -> None:
    first = trainer(tmp_path, max_epochs=1)
    first.fit(Probe(), module())
    first.save_checkpoint(tmp_path / "run.ckpt")
    again = trainer(tmp_path)
    with pytest.raises(InputError, match="the checkpoint was trained on split"):
        again.fit(Probe(), module(split_seed=1), ckpt_path=tmp_path / "run.ckpt", weights_only=True)


@pytest.mark.parametrize("kind", [Probe, ProbeWithViews])
def test_the_curriculum_groups_similar_classes(
    module: Callable[..., ImageDataModule], tmp_path: Path, kind: type[Probe]
) -> None:
    curriculum = HardClassCurriculum(group_size=2, start_epoch=1, images_per_class=2)
    data, probe = module(regroup=True), kind()
    trainer(tmp_path, max_epochs=2, callbacks=[curriculum, InputTiming()]).fit(probe, data)
    assert data._train_loader is not None
    state = data._train_loader.state_dict()
    groups = np.array(state["sampler"]["groups"])
    assert np.bincount(groups).max() <= 2
    trained = data._train_loader.dataset
    labels = dict(zip(trained.rows.tolist(), trained.labels.tolist(), strict=True))
    for _, _, rows, _ in probe.seen[6:]:
        assert len({groups[labels[row]] for row in rows}) <= 3, "4 classes of groups of two"
    assert probe.training
    with pytest.raises(InputError, match="regroup: true"):
        trainer(tmp_path, callbacks=[HardClassCurriculum(start_epoch=0)]).fit(Probe(), module())


def test_timing_is_printed(
    module: Callable[..., ImageDataModule], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tmp_path, max_epochs=2, callbacks=[InputTiming()]).fit(Probe(), module())
    printed = " ".join(capsys.readouterr().out.split())
    assert "waiting for data: first epoch" in printed
    assert "later epochs" in printed


def test_what_the_training_part_is(module: Callable[..., ImageDataModule]) -> None:
    data = module(rotations_as_classes=True)
    plain = module()
    assert data.num_classes == 4 * plain.num_classes
    assert len(data.class_names) == data.num_classes
    assert data.class_names[0] == plain.class_names[0]
    assert data.class_names[-1].endswith("turned 270°")
    assert data.split_hash == plain.split_hash
    labels = torch.cat([batch["label"] for batch in data.train_dataloader()])
    assert labels.max() < data.num_classes
    for batch in plain.train_dataloader():
        names = [plain.class_names[label] for label in batch["label"].tolist()]
        assert names == [plain.table.class_names[plain.table.labels[i]] for i in batch["index"].tolist()]


def test_loaders_cover_their_parts(module: Callable[..., ImageDataModule]) -> None:
    data = module()
    for part, loader in (("test", data.test_dataloader()), ("val", data.val_dataloader())):
        assert [i for b in loader for i in b["index"].tolist()] == data.parts.rows(part).tolist()  # type: ignore[arg-type]
    assert sum(len(b["label"]) for b in data.predict_dataloader()) == 80
    assert module(val_fraction=0.0).val_dataloader() == []
    with pytest.raises(InputError, match="no test images"):
        module(test_fraction=0.0).test_dataloader()


def test_folds(module: Callable[..., ImageDataModule]) -> None:
    tested = [set(module(folds=4, fold=fold).parts.rows("test").tolist()) for fold in range(4)]
    assert set().union(*tested) == set(range(80))
    assert sum(map(len, tested)) == 80
    with pytest.raises(InputError, match="fold 4 of 4"):
        module(folds=4, fold=4).setup()


def test_per_image_split_is_on_request(module: Callable[..., ImageDataModule]) -> None:
    data = module(split="per_image")
    assert set(data.table.labels[data.parts.rows("train")]) & set(data.table.labels[data.parts.rows("test")])


def test_groups_by_column(module: Callable[..., ImageDataModule], write_folder: Callable[..., Path]) -> None:
    root = write_folder({f"c{n:02d}": 5 for n in range(16)})
    lines = [f"c{n:02d},{'train' if n < 12 else 'test'},g{n % 3}" for n in range(16)]
    (root / "split.csv").write_text("\n".join(["class,split,coarse", *lines]))
    data = module(group_by="coarse", val_fraction=0.0)
    for batch in data.train_dataloader():
        classes = data.table.labels[batch["index"].numpy()]
        assert len({int(c) % 3 for c in classes}) == 1
    with pytest.raises(InputError, match="no column 'colour'; they have: coarse"):
        module(group_by="colour").train_dataloader()


def test_disk_cache_serves_the_next_run(module: Callable[..., ImageDataModule], cache_folder: Path) -> None:
    first = list(module(cache="disk").test_dataloader())
    data = module(cache="disk")
    for row in data.parts.rows("test"):
        (data.table.roots[0] / data.table.name(row)).write_text("gone")
    again = list(data.test_dataloader())
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, again, strict=True))
    assert any((cache_folder / "pixels").iterdir())


def test_corrupt_images_are_counted(module: Callable[..., ImageDataModule]) -> None:
    data = module()
    row = int(data.parts.rows("test")[0])
    (data.table.roots[0] / data.table.name(row)).write_text("no image")
    list(data.test_dataloader())
    assert list(data.corrupt) == [data.table.name(row)]


@pytest.mark.parametrize(
    "path", ["https://images.example/{}", "file:///photos/{}", "photos/{}", "{}/", "x" * 999 + "{}"]
)
def test_a_table_whose_paths_lead_nowhere_is_refused(
    module: Callable[..., ImageDataModule], tmp_path: Path, path: str
) -> None:
    rows = "".join(f"{path.format(name)},{name}\n" for name in "abcdef")
    (tmp_path / "list.csv").write_text(f"path,label\n{rows}")
    with pytest.raises(
        InputError, match=r"holds none of the images that are listed \(tried 6, .* relative to it"
    ):
        module(source=str(tmp_path / "list.csv")).setup("fit")


def test_training_needs_two_classes(
    module: Callable[..., ImageDataModule], write_folder: Callable[..., Path]
) -> None:
    with pytest.raises(InputError, match="only one class"):
        module(source=str(write_folder({"only": 5}, "single"))).setup("fit")


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 1), (6, 5), (64, 8)])
def test_default_workers_leave_a_core_to_training(
    module: Callable[..., ImageDataModule], monkeypatch: pytest.MonkeyPatch, cores: int, workers: int
) -> None:
    for name in ("cpu_count", "process_cpu_count"):
        monkeypatch.setattr(os, name, lambda: cores, raising=False)
    assert module(num_workers=None).num_workers == workers


def test_nothing_warns_in_worker_processes(module: Callable[..., ImageDataModule]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = list(module(num_workers=1).train_dataloader())
    assert np.isfinite([float(b["image"].sum()) for b in batches]).all()


def test_validation_takes_whole_classes_up_to_a_number_of_images(module: Callable[..., Any]) -> None:
    every = module(val_fraction=0.5)
    rows, labels = every.parts.rows("val"), every.table.labels
    some = module(val_fraction=0.5, val_images=len(rows) - 1).validation_rows
    assert 0 < len(some) < len(rows)
    assert set(some) == {row for row in rows if labels[row] in labels[some]}
    assert len(np.unique(labels[module(val_fraction=0.5, val_images=1).validation_rows])) == 2
    assert np.array_equal(every.validation_rows, rows)
    assert np.array_equal(module(val_fraction=0.5, val_images=len(rows)).validation_rows, rows)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batches_per_epoch": 0}, "batches_per_epoch is 0; give at least 1"),
        ({"batches_per_epoch": -2}, "batches_per_epoch is -2"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0"),
        ({"num_workers": -1}, "num_workers is -1; give at least 0"),
        ({"seed": -5}, "seed is -5"),
        ({"val_images": 0}, "val_images is 0"),
        ({"cache_gigabytes": -1.0}, "cache_gigabytes is -1.0"),
        ({"mean": [123.0, 117.0, 104.0]}, "divide mean and std by 255"),
        ({"source": ""}, "the source is empty"),
    ],
)
def test_values_out_of_range_are_refused_at_once(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageDataModule(**values)
