"""A network whose input is no square, from training to search."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from app.cli import main
from app.commands.evaluate import evaluate
from data.datamodule import ImageDataModule
from models.bundle import Bundle
from models.errors import InputError
from models.module import MetricLearner
from models.pretrained import pretrained_bundle
from serve.api.app import create_app
from serve.server import open_collections
from serve.settings import Settings


@pytest.fixture
def trained(fit_options: list[str], tmp_path: Path) -> Path:
    """A bundle trained for one step; Conv-4's "flatten" is built for one size."""
    options = ["--data.image_size=[32, 48]", "--trainer.max_steps=1", "--compare=false"]
    options += ["--model.backbone_args={width: 8, pooling: flatten, image_size: [32, 48]}"]
    assert main([*fit_options, *options]) == 0
    return tmp_path / "run" / "bundle"


def test_it_is_trained_exported_indexed_evaluated_and_served(
    trained: Path, image_folder: Path, tmp_path: Path
) -> None:
    assert (
        main(["export", str(trained), "--onnx", "--torch-export", "--quantize", "dynamic", "--images", "4"])
        == 0
    )
    bundle = Bundle.load(trained, "cpu")
    assert json.loads((trained / "bundle.json").read_text())["preprocess"]["size"] == [32, 48]
    assert bundle.exports["model.onnx"]["input"]["shape"] == ["batch", 3, 32, 48]
    assert "32×48 pixels" in (trained / "README.md").read_text()
    image = image_folder / "star" / "03.jpg"
    vector = bundle.embed([image])[0]
    for backend in ("eager", "onnx"):
        fast = bundle.optimize(backend, cache=tmp_path / "inference")
        np.testing.assert_allclose(fast.embed([image])[0], vector, atol=1e-4)

    data, store = f"--data={image_folder}", tmp_path / "store"
    assert main(["index", f"--bundle={trained}", data, f"--store={store}"]) == 0
    out = tmp_path / "evaluation"
    assert evaluate(bundle=[trained], data=str(image_folder), out=out, ks=(1,), allow_seen_classes=True) == 0

    settings = Settings(store=str(store), bundle=trained, recall_seconds=0)
    with TestClient(
        create_app(settings, bundle, open_collections(settings, bundle)), base_url="http://127.0.0.1"
    ) as client:
        model = client.get("/v1/model").json()
        assert (model["size"], model["mode"]) == ([32, 48], "RGB")
        answer = client.post("/v1/search", files={"image": image.read_bytes()}, data={"k": "1"}).json()
        assert answer["hits"][0]["id"] == "star/03.jpg"


@pytest.mark.parametrize("size", [[32, 64], 64])
def test_the_batches_have_that_shape_and_another_backbone_is_refused(size: Any, image_folder: Path) -> None:
    data = ImageDataModule(
        image_folder, image_size=size, mode="L", augmentation="photos", classes_per_batch=2, num_workers=0
    )
    (height, width) = [64, 64] if size == 64 else size
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (8, 1, height, width)
    model = MetricLearner(backbone_args={"pooling": "flatten", "image_size": [32, 48]}, in_channels=1)
    model.trainer = type("Trainer", (), {"datamodule": data, "precision": "32-true"})()
    with pytest.raises(InputError, match="built for"):
        model.on_fit_start()


def test_turned_copies_need_squares(image_folder: Path) -> None:
    with pytest.raises(InputError, match="rotations_as_classes"):
        ImageDataModule(image_folder, image_size=[32, 48], rotations_as_classes=True)


@pytest.mark.parametrize("option", ["mode=RGBA", "image_size=[32, 48, 3]", "image_size=0"])
def test_other_shapes_are_refused_in_one_plain_line(
    option: str, fit_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*fit_options, f"--data.{option}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kindred: preprocess: ")


def test_a_transformer_is_built_for_the_rectangle(tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    bundle = pretrained_bundle("timm.test_vit", str(tmp_path / "vit.pth"), image_size=(64, 96))
    bundle.save(tmp_path / "bundle")
    again = Bundle.load(tmp_path / "bundle", "cpu")
    pixels = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    torch.testing.assert_close(again.embed_pixels(pixels), bundle.embed_pixels(pixels))
