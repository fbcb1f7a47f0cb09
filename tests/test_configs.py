"""Every config file works: it is parsed, its objects are built, and it trains one step on small images."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed
import yaml
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from PIL import Image

from app.cli import main
from models.module import MetricLearner

ROOT = Path(__file__).parents[1]
TASKS = sorted((ROOT / "configs").glob("*.yaml"))
PARTS = {kind: sorted((ROOT / "configs" / kind).glob("*.yaml")) for kind in ("model", "data", "trainer")}

# Networks that need larger images than the others.
IMAGE_SIZE = {"inception_v3": 75, "facenet": 96, "vit_small_dino": 224}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configs") / "images"
    rng = np.random.default_rng(0)
    for kind in range(8):
        (folder / f"class-{kind}").mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class-{kind}" / f"{number}.png")
    return folder


def as_table(images: Path, column: str) -> Path:
    """The images as a table whose classes belong to one of two groups."""
    table = images.parent / f"{column}.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", column])
        for path in sorted(images.glob("*/*")):
            label = path.parent.name
            rows.writerow([path.relative_to(table.parent), label, int(label[-1]) % 2])
    return table


@pytest.fixture(autouse=True)
def _no_process_group_is_left() -> Iterator[None]:
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def one_step(configs: list[Path], images: Path, run: Path, *extra: str) -> int:
    return main(
        [
            "fit",
            *(f"--config={path}" for path in [*configs, ROOT / "configs/trainer/debug.yaml"]),
            f"--run={run}",
            f"--data.source={images}",
            "--data.classes_per_batch=2",
            "--data.samples_per_class=2",
            "--data.batches_per_epoch=1",
            "--data.num_workers=0",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            "--monitor=null",
            "--compare=false",
            *extra,
        ]
    )


def test_there_are_configs() -> None:
    assert {path.name for path in TASKS} >= {"demo.yaml", "folder.yaml", "omniglot.yaml"}
    assert all(PARTS.values())


@pytest.mark.parametrize("config", TASKS, ids=lambda path: path.stem)
def test_a_task_trains_one_step(config: Path, images: Path, tmp_path: Path) -> None:
    task = yaml.safe_load(config.read_text())
    backbone = task["model"].get("backbone_args", {})
    size = backbone.get("image_size", 32)  # a network built for one size takes no other
    column = task["data"].get("group_by")
    source = as_table(images, column) if column else images
    assert one_step([config], source, tmp_path, f"--data.image_size={size}") == 0
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("config", PARTS["model"], ids=lambda path: path.stem)
def test_a_model_trains_one_step(config: Path, images: Path, tmp_path: Path) -> None:
    extra = [f"--data.image_size={IMAGE_SIZE.get(config.stem, 32)}"]
    if "weights" in yaml.safe_load(config.read_text())["model"]:
        extra.append("--model.weights=null")  # fetching them is torchvision's and timm's business
    assert one_step([ROOT / "configs/data/folder.yaml", config], images, tmp_path, *extra) == 0


@pytest.mark.parametrize("config", PARTS["trainer"], ids=lambda path: path.stem)
def test_a_trainer_trains_one_step(
    config: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several machines only the first process of the first one."""
    if config.stem == "slurm":
        for name in ("PROCID", "LOCALID", "NODEID"):
            monkeypatch.setenv(f"SLURM_{name}", "0")
        monkeypatch.setenv("SLURM_NTASKS", "1")
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(find_free_network_port()))
    extra = [
        "--trainer.devices=1",
        "--trainer.num_nodes=1",
        "--data.image_size=32",
        "--model.backbone=conv4",
    ]
    assert one_step([ROOT / "configs/demo.yaml", config], images, tmp_path, *extra) == 0


@pytest.mark.parametrize("config", PARTS["data"], ids=lambda path: path.stem)
def test_a_data_set_goes_with_a_model(config: Path, images: Path, tmp_path: Path) -> None:
    """The sets themselves are not here; everything but their images is taken from the file."""
    assert (
        one_step([ROOT / "configs/model/conv4.yaml", config], images, tmp_path, "--data.image_size=32") == 0
    )


@pytest.mark.parametrize("config", TASKS, ids=lambda path: path.stem)
def test_print_config_is_readable(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", f"--config={config}", "--print_config"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    printed = yaml.safe_load(text)
    (tmp_path / "printed.yaml").write_text(text)
    assert printed_config(capsys, f"--config={tmp_path / 'printed.yaml'}") == printed
    assert printed["model"]["backbone"]
    assert printed["data"]["source"]
    assert not {"class_path", "init_args"} & {*printed["model"], *printed["data"]}


def printed_config(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    with pytest.raises(SystemExit):
        main(["fit", *options, "--print_config"])
    printed: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return printed


def test_configs_with_class_paths_still_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = {
        "model": {"class_path": "models.module.MetricLearner", "init_args": {"backbone": "resnet18"}},
        "data": {"init_args": {"image_size": 48}},
    }
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old))
    printed = printed_config(
        capsys, f"--config={ROOT / 'configs/folder.yaml'}", f"--config={tmp_path / 'old.yaml'}",
        "--model.init_args.embedding_dim=7", "--data.image_size=49",
    )  # fmt: skip
    assert (printed["model"]["backbone"], printed["model"]["embedding_dim"]) == ("resnet18", 7)
    assert printed["data"]["image_size"] == 49


class OwnLearner(MetricLearner):
    """A user's class."""

    def __init__(self, extra: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.extra = extra


def test_a_class_of_ones_own_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{OwnLearner.__module__}.OwnLearner"
    own = {"model": {"class_path": path, "init_args": {"extra": 4}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    (tmp_path / "flat.yaml").write_text(yaml.safe_dump({"model": {"backbone": "resnet10"}}))
    files = (ROOT / "configs/demo.yaml", tmp_path / "own.yaml", tmp_path / "flat.yaml")
    printed = printed_config(capsys, *(f"--config={file}" for file in files))
    assert printed["model"]["class_path"] == path
    assert printed["model"]["init_args"]["extra"] == 4
    assert printed["model"]["init_args"]["backbone"] == "resnet10"
