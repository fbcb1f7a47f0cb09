"""MetricLearner on data sets and loaders of one's own, up to a bundle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from pytorch_metric_learning.samplers import MPerClassSampler
from torch import Tensor
from torch.utils.data import DataLoader, StackDataset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from app.cli import main
from app.export import bundle_from_checkpoint, bundle_from_module
from models.bundle import Bundle
from models.errors import InputError
from models.metrics import retrieval_metrics
from models.module import MetricLearner
from models.preprocess import Preprocess
from tests.conftest import PLAIN_LOADERS

pytestmark = PLAIN_LOADERS
TINY: dict[str, Any] = {"backbone_args": {"width": 4}, "embedding_dim": 8}
HALVES = Preprocess(24, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
TRANSFORM = v2.Compose(
    [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])]
)


def trainer(folder: Path, **values: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    plain = {"accelerator": "cpu", "enable_checkpointing": False, "max_epochs": 1, "log_every_n_steps": 1}
    return Trainer(**(quiet | plain | {"default_root_dir": folder} | values))


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Six classes of four images of 24 × 24 pixels."""
    generator = np.random.default_rng(0)
    for name in "abcdef":
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return ImageFolder(tmp_path / "images", TRANSFORM)


def test_an_image_folder_trains_and_becomes_a_bundle(
    tmp_path: Path, folder: ImageFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    seed_everything(0)
    sampler = MPerClassSampler(folder.targets, m=2, batch_size=8, length_before_new_iter=32)
    training = DataLoader(folder, batch_size=8, sampler=sampler)
    complete = DataLoader(folder, batch_size=7)
    model = MetricLearner(**TINY)
    run = trainer(tmp_path)
    run.fit(model, training, complete)
    assert run.callback_metrics["train/loss"].isfinite()
    assert model.validated is not None
    assert model.validated[2].tolist() == list(range(24))
    tested = run.test(model, complete, verbose=False)[0]["test/recall@1"]
    predicted = run.predict(model, complete)
    assert predicted is not None
    vectors = torch.cat([batch["embedding"] for batch in predicted])  # type: ignore[index]
    assert tested == pytest.approx(retrieval_metrics(vectors, folder.targets)["recall@1"])
    assert torch.cat([batch["index"] for batch in predicted]).tolist() == list(range(24))  # type: ignore[index]
    assert torch.cat([batch["label"] for batch in predicted]).tolist() == folder.targets  # type: ignore[index]
    expected = torch.cat([batch["embedding"] for batch in predicted]).numpy()  # type: ignore[index]

    paths = [path for path, _ in folder.samples]
    bundle = bundle_from_module(model, HALVES)
    np.testing.assert_allclose(bundle.embed(paths), expected, atol=1e-5)
    run.save_checkpoint(tmp_path / "own.ckpt")
    again = bundle_from_checkpoint(tmp_path / "own.ckpt", HALVES)
    assert again.fingerprint == bundle.fingerprint
    settings = '{"size": 24, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}'
    command = ["export", str(tmp_path / "own.ckpt"), "--out", str(tmp_path / "bundle")]
    assert main([*command, "--preprocess", settings]) == 0
    assert Bundle.load(tmp_path / "bundle", "cpu").fingerprint == bundle.fingerprint
    capsys.readouterr()
    for options, message in (
        ([], 'give a Preprocess, on the command line --preprocess \'{"size": 224, "mode": "RGB"}\''),
        (["--preprocess", '{"size": 24, "mode": "L"}'], "mode to RGB"),
        (["--preprocess", "24"], "--preprocess 24"),
        (["--preprocess", "{size: 24}"], "give JSON such as"),
        (["--preprocess", '{"side": 24}'], "side"),
        (["--preprocess", '{"size": 24, "mean": ["a"]}'], "'a'"),
    ):
        assert main([*command, *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert main(["export", str(tmp_path / "bundle"), "--preprocess", settings]) == 2
    assert "has its preprocessing already" in capsys.readouterr().err


@pytest.mark.parametrize("data", [None, object()])
def test_a_bundle_without_any_preprocessing_says_what_to_give(data: Any) -> None:
    with pytest.raises(InputError, match=r"bundle_from_module: .* give a Preprocess"):
        bundle_from_module(MetricLearner(**TINY), data)


IMAGES = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(3).repeat_interleave(4)


def loader(*tensors: Tensor, names: tuple[str, ...] = ()) -> DataLoader[Any]:
    data = StackDataset(**dict(zip(names, tensors, strict=True))) if names else TensorDataset(*tensors)
    return DataLoader(data, batch_size=6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "indices"),
    [
        (loader(IMAGES, LABELS), range(12)),
        (loader(IMAGES, LABELS, torch.arange(12) + 5), range(5, 17)),
        (loader(IMAGES, LABELS, names=("image", "label")), range(12)),
        (loader(IMAGES, LABELS, torch.arange(12) + 5, names=("image", "label", "index")), range(5, 17)),
        (loader(IMAGES, LABELS, torch.arange(12) + 5, names=("image", "label", "age")), range(12)),
    ],
)
def test_batches_of_every_form(tmp_path: Path, data: DataLoader[Any], indices: range) -> None:
    model = MetricLearner(**TINY)
    run = trainer(tmp_path, max_epochs=2)
    run.fit(model, data, data)
    assert model.validated is not None
    assert model.validated[1].tolist() == LABELS.tolist()
    assert model.validated[2].tolist() == list(indices)
    run.test(model, data, verbose=False)
    predicted = run.predict(model, data)
    assert predicted is not None
    assert torch.cat([batch["index"] for batch in predicted]).tolist() == list(indices)  # type: ignore[index]


@pytest.mark.parametrize("data", [loader(IMAGES), DataLoader(IMAGES, batch_size=6)])  # type: ignore[arg-type]
def test_images_alone_are_embedded(tmp_path: Path, data: DataLoader[Any]) -> None:
    predicted = trainer(tmp_path).predict(MetricLearner(**TINY), data)
    assert predicted is not None
    assert [sorted(batch) for batch in predicted] == [["embedding", "index"]] * 2  # type: ignore[arg-type]


def test_two_data_sets_are_counted_on(tmp_path: Path) -> None:
    model = MetricLearner(**TINY)
    trainer(tmp_path).validate(model, [loader(IMAGES, LABELS), loader(IMAGES + 1, LABELS)], verbose=False)
    assert model.validated is not None
    assert model.validated[2].tolist() == list(range(24))


def test_processes_count_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.module.world_size", lambda: 3)
    batch = {"image": IMAGES[:4]}
    seen = []
    for rank in range(3):
        monkeypatch.setattr(MetricLearner, "global_rank", rank)
        model = MetricLearner(**TINY).eval()
        for number in range(2):
            seen += model.predict_step(batch, number)["index"].tolist()
    assert sorted(seen) == list(range(24))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (IMAGES, "batches with a Tensor: give mappings of image and label, or tuples"),
        ({"pixels": IMAGES, "label": LABELS}, r"batches with keys \['pixels', 'label'\]"),
        ((IMAGES,), r"batches with keys \['image'\]"),
        ((IMAGES, LABELS, LABELS, LABELS), "batches with a tuple"),
        ((IMAGES[:, :1], LABELS), r"images are torch.float32 \(12, 1, 16, 16\): .*\(B, 3, H, W\)"),
        ((IMAGES.byte(), LABELS), "images are torch.uint8: convert and normalize them"),
        ((IMAGES, list("abcdefabcdef")), "labels are a list: give one class number an image"),
        ((IMAGES, LABELS.float()), r"labels are torch.float32 \(12,\)"),
        ((IMAGES, LABELS[:, None]), r"labels are torch.int64 \(12, 1\)"),
    ],
)
@pytest.mark.parametrize("step", ["training_step", "validation_step", "test_step"])
def test_batches_that_cannot_be_used_are_described(step: str, batch: Any, message: str) -> None:
    run: Callable[..., Any] = getattr(MetricLearner(**TINY), step)
    with pytest.raises(InputError, match=message):
        run(batch, 0)
