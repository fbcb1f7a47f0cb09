"""Search before any training: a pretrained network exported, evaluated, indexed, and started from."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from lightning import Trainer

from app.cli import main
from app.evaluation.baselines import pretrained_twins
from data.datamodule import ImageDataModule
from models.bundle import Bundle
from models.errors import InputError
from models.module import MetricLearner
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess
from models.pretrained import pretrained_bundle
from serve.store.collection import FaissStore

LITE0 = "timm.tf_efficientnet_lite0"
PRETRAINED = "pretrained, not trained"


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def names(folder: Path) -> list[str]:
    return [model["name"] for model in results(folder)["models"]]


def evaluate(bundle: Path, data: Path, out: Path) -> int:
    return main(
        ["evaluate", f"--bundle={bundle}", f"--data={data}", "--split=all", f"--out={out}", "--no-report",
         "--allow-seen-classes"]
    )  # fmt: skip


@pytest.fixture
def tiny_weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


def test_from_packaged_weights_to_search_without_training(image_folder: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "lite0", tmp_path / "evaluation"
    options = ["--backbone", LITE0, "--weights", "packaged", "--image-size", "64", "--out", str(folder)]
    assert main(["export", *options]) == 0
    bundle = Bundle.load(folder, "cpu")
    assert bundle.info == {"weights": "packaged"}
    assert bundle.preprocess == Preprocess(
        64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic"
    )
    assert (bundle.architecture.head, bundle.architecture.normalization, bundle.dim) == (
        "none",
        "batch",
        1280,
    )
    card = (folder / "README.md").read_text()
    assert "64×64 pixels, bicubic" in card
    assert "| began from the weights | packaged |" in card

    assert evaluate(folder, image_folder, out) == 0
    assert names(out) == ["lite0", "raw pixels", "colour histogram", "untrained"]  # itself, not twice
    shown = {model["name"]: model for model in results(out)["models"]}
    assert shown["lite0"]["metrics"]["recall@1"] > 0.9
    assert shown["untrained"]["about"]["fingerprint"] != bundle.fingerprint

    store = ["--store", str(tmp_path / "store")]
    assert main(["index", "--bundle", str(folder), "--data", str(image_folder), *store]) == 0
    query = next(image_folder.rglob("*.jpg"))
    with FaissStore.open(tmp_path / "store", read_only=True) as opened:
        hit = opened.search(bundle.embed([query]), k=1).hits[0][0]
    assert hit.similarity > 0.999
    assert hit.label == query.parent.name


def test_fit_takes_the_images_that_the_weights_want(
    fit_options: list[str], image_folder: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    """And the trained network stands beside the one that it began from."""
    options = [
        "--model.backbone=timm.test_resnet",
        f"--model.weights={tiny_weights}",
        "--trainer.max_epochs=1",
    ]
    assert main([*fit_options, *options]) == 0
    run = tmp_path / "run"
    data = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert data["image_size"] == 28  # as the options say
    assert (data["mean"], data["interpolation"]) == ([0.5, 0.5, 0.5], "bilinear")
    bundle = Bundle.load(run / "bundle", "cpu")
    assert bundle.preprocess.mean == (0.5, 0.5, 0.5)
    assert bundle.info["weights"] == str(tiny_weights)
    assert str(tmp_path) not in (run / "bundle" / "README.md").read_text()

    assert evaluate(run / "bundle", image_folder, tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["run", "raw pixels", "colour histogram", "untrained", PRETRAINED]
    shown = results(tmp_path / "out")["models"][-1]
    assert shown["about"]["dim"] == 96
    assert (
        shown["about"]["fingerprint"]
        == pretrained_bundle("timm.test_resnet", str(tiny_weights), preprocess=bundle.preprocess).fingerprint
    )

    tiny_weights.unlink()
    assert evaluate(run / "bundle", image_folder, tmp_path / "later") == 0
    assert PRETRAINED not in names(tmp_path / "later")
    assert any(
        "No baseline of the pretrained network" in note for note in results(tmp_path / "later")["notes"]
    )


def test_print_config_shows_what_the_config_leaves_open(capsys: pytest.CaptureFixture[str]) -> None:
    """Before a run nothing is filled in: the config's own values are shown."""
    with pytest.raises(SystemExit):
        main(["fit", "--config=configs/folder.yaml", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["data"]["interpolation"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name either a checkpoint or bundle"),
        (
            ["there", "--backbone", LITE0, "--weights", "packaged", "--out", "x"],
            "or a pretrained network",
        ),
        (["--backbone", LITE0, "--out", "x"], "--weights"),
        (["--backbone", LITE0, "--weights", "packaged"], "--out"),
        (["there", "--image-size", "64"], "go with --backbone"),
        (["--backbone", "resnet18", "--weights", "packaged", "--out", "x"], "tf_efficientnet_lite0"),
    ],
)
def test_export_wants_one_model(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["export", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_transformer_is_built_for_the_images_size(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    bundle = pretrained_bundle("timm.test_vit", str(tmp_path / "vit.pth"), image_size=64)
    assert bundle.architecture.normalization == "layer"
    assert bundle.architecture.backbone_args == {"img_size": 64}
    again = Bundle.load(bundle.save(tmp_path / "bundle"), "cpu")
    assert again.embed_pixels(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 64)
    assert pretrained_twins([again]) == ([], [])


def test_two_models_that_began_alike_share_the_baseline(tiny_weights: Path) -> None:
    architecture = Architecture("timm.test_resnet", embedding_dim=8)
    models = [
        Bundle(
            EmbeddingNetwork(architecture), architecture, Preprocess(32), info={"weights": str(tiny_weights)}
        )
        for _ in range(2)
    ]
    twins, notes = pretrained_twins(models)
    assert [twin.name for twin in twins] == [PRETRAINED]
    assert not notes


def test_other_normalization_than_the_weights_is_said(
    image_folder: Path, tiny_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = MetricLearner("timm.test_resnet", weights=str(tiny_weights))
    caplog.set_level(logging.WARNING)
    for mean, expected in (([0.5] * 3, 0), ([0.4] * 3, 1)):
        data = ImageDataModule(
            str(image_folder), image_size=32, mean=mean, std=[0.5] * 3, classes_per_batch=2, num_workers=0
        )
        trainer = Trainer(
            fast_dev_run=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        trainer.fit(model, data)
        said = [record.message for record in caplog.records if "normalized by" in record.message]
        assert len(said) == expected
    assert "\n" not in said[0]


def test_grey_images_take_the_mean_over_the_colours(fit_options: list[str], tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "tiny.pth")
    options = [
        "--model.backbone=timm.test_resnet", f"--model.weights={tmp_path / 'tiny.pth'}",
        "--data.mode=L", "--data.image_size=null", "--trainer.max_epochs=1",
        "--data.batches_per_epoch=1",
    ]  # fmt: skip
    assert main([*fit_options, *options]) == 0
    preprocess = Bundle.load(tmp_path / "run" / "bundle", "cpu").preprocess
    assert (preprocess.size, preprocess.mean) == (160, (0.5,))


def test_weights_that_are_not_there_end_fit_in_one_line(
    fit_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model.backbone=timm.test_resnet", "--model.weights=in22k"]
    assert main([*fit_options, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "test_resnet has DEFAULT, r160_in1k" in line


def test_pretrained_features_are_the_networks_own(tiny_weights: Path) -> None:
    donor = timm.create_model("test_resnet", num_classes=0)
    state = torch.load(tiny_weights, weights_only=True)
    donor.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")})
    bundle = pretrained_bundle("timm.test_resnet", str(tiny_weights))
    pixels = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    expected = torch.nn.functional.normalize(donor.eval()(bundle.preprocess.normalize(pixels)))
    np.testing.assert_allclose(bundle.embed_pixels(pixels), expected.detach(), atol=1e-5)
    with pytest.raises(InputError, match="no such file"):
        pretrained_bundle("timm.test_resnet", "gone.pth")
