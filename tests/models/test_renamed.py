"""What earlier versions wrote is understood: bundles for good, configs and options with a message."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from app.cli import main
from models.backbones import build_backbone
from models.bundle import Bundle
from models.bundle_files import fingerprint_of
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess
from models.renamed import renamed_argument, renamed_config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("former", "now", "fingerprint"),
    [
        ("crop", "crop", "be4c3b835c94a476"),
        ("content", "content_crop", "bcdf20e7b39f4fba"),
        ("squash", "stretch", "9eecd275a777763b"),
    ],
)
def test_fingerprints_are_those_of_earlier_versions(former: str, now: str, fingerprint: str) -> None:
    settings = Preprocess(size=32, mode="L", resize_mode=now)
    assert Preprocess.from_dict({"size": 32, "mode": "L", "fit": former}) == settings
    assert fingerprint_of({"w": torch.zeros(2)}, Architecture(), settings) == fingerprint


def test_a_bundle_of_an_earlier_version_embeds_as_it_did(tmp_path: Path) -> None:
    now = {"pooling": "multiscale_stats", "num_pools": 3, "pool_before_norm": True, "width": 4}
    former = {"pool": "levels", "pools": 3, "pool_first": True, "width": 4}
    torch.manual_seed(0)
    network = EmbeddingNetwork(Architecture(backbone_args=now, embedding_dim=8))
    architecture = Architecture(backbone_args=former, embedding_dim=8)
    bundle = Bundle(network, architecture, Preprocess(size=24, resize_mode="stretch"))
    folder = bundle.save(tmp_path / "bundle")
    manifest = json.loads((folder / "bundle.json").read_text())
    assert manifest["preprocess"].pop("resize_mode") == "stretch"
    manifest["preprocess"]["fit"] = "squash"
    (folder / "bundle.json").write_text(json.dumps(manifest))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8))
    loaded = Bundle.load(folder, "cpu")
    assert loaded.fingerprint == bundle.fingerprint
    np.testing.assert_array_equal(loaded.embed([image]), bundle.embed([image]))


def test_other_networks_keep_arguments_of_these_names() -> None:
    """Only conv4's are renamed."""
    with pytest.raises(ValueError, match="'pools': 3"):
        build_backbone("resnet10", {"pools": 3})


FORMER = {
    "model": {"backbone": "conv4", "backbone_args": {"pool": "flatten", "pools": 2, "image_size": 32}},
    "data": {"source": "here", "fit": "content"},
    "trainer": {
        "callbacks": [
            {"class_path": "models.callbacks.principal_head.PrincipalHead", "init_args": {"trained": 0.5}},
            {"class_path": "models.callbacks.gallery.RetrievalGallery"},
        ]
    },
}
NOW = {
    "model": {"backbone": "conv4", "backbone_args": {"pooling": "flatten", "num_pools": 2, "image_size": 32}},
    "data": {"source": "here", "resize_mode": "content_crop"},
    "trainer": {
        "callbacks": [
            {"class_path": "models.callbacks.pca_head.PCAHead", "init_args": {"head_weight": 0.5}},
            {"class_path": "models.callbacks.retrieval_images.RetrievalImages"},
        ]
    },
}


def test_configs_of_an_earlier_version_mean_what_they_did(caplog: pytest.LogCaptureFixture) -> None:
    assert renamed_config(FORMER) == NOW
    assert len(caplog.messages) == 6
    assert "fit: content is now resize_mode: content_crop" in caplog.text
    caplog.clear()
    assert renamed_config(NOW) == NOW
    assert not caplog.messages


def test_views_in_a_config_are_tta(caplog: pytest.LogCaptureFixture) -> None:
    assert renamed_config({"model": {"views": [{"mirror": True}]}}) == {"model": {"tta": [{"mirror": True}]}}
    assert "is now tta" in caplog.text


@pytest.mark.parametrize("tta", [None, [{"mirror": True}]])
def test_a_former_name_without_a_value_beside_the_present_one(
    caplog: pytest.LogCaptureFixture, tta: object
) -> None:
    assert renamed_config({"model": {"tta": tta, "views": None}}) == {"model": {"tta": tta}}
    assert not caplog.messages


def test_classes_of_ones_own_keep_arguments_of_these_names(caplog: pytest.LogCaptureFixture) -> None:
    own = {
        "model": {"backbone": "own.Net", "backbone_args": {"pool": "levels"}},
        "data": {"class_path": "own.Data", "init_args": {"fit": "content"}},
        "trainer": {"callbacks": [{"class_path": "own.Callback", "init_args": {"trained": 1}}]},
    }
    assert renamed_config(own) == own
    assert not caplog.messages


def test_our_configs_use_the_names_of_now(caplog: pytest.LogCaptureFixture) -> None:
    for path in (ROOT / "configs").rglob("*.yaml"):
        settings = yaml.safe_load(path.read_text())
        assert renamed_config(settings) == settings, path
    assert not caplog.messages


@pytest.mark.parametrize(
    ("former", "now"),
    [
        ("--data.fit=squash", "--data.resize_mode=stretch"),
        ("--data.init_args.fit=pad", "--data.init_args.resize_mode=pad"),
        (
            "--trainer.callbacks+=models.callbacks.gallery.RetrievalGallery",
            "--trainer.callbacks+=models.callbacks.retrieval_images.RetrievalImages",
        ),
        ("--model.views=[{mirror: true}]", "--model.tta=[{mirror: true}]"),
        ("--data.source=content", "--data.source=content"),
        ("content", "content"),
    ],
)
def test_options_of_an_earlier_version(former: str, now: str) -> None:
    assert renamed_argument(former) == now


def test_the_command_line_reads_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(FORMER))
    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit):
        main(["fit", f"--config={tmp_path / 'old.yaml'}", "--data.fit=squash", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["data"]["resize_mode"] == "stretch"
    assert printed["model"]["backbone_args"] == NOW["model"]["backbone_args"]
    assert [entry["class_path"] for entry in printed["trainer"]["callbacks"]] == [
        entry["class_path"] for entry in NOW["trainer"]["callbacks"]
    ]
    assert "--data.fit=squash is now --data.resize_mode=stretch" in caplog.text
