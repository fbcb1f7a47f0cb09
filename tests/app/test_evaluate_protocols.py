"""Few-shot episodes, queries against a gallery, floors alone, and the refusal to test on seen classes."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.cli import main
from app.commands.evaluate import evaluate
from data.seen_classes import pack_classes
from data.sources import open_source
from data.splits import SplitSettings
from models.bundle import Bundle
from models.errors import InputError
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess

CLASSES, EACH = 12, 6
NAMES = [f"item_{label:02d}" for label in range(CLASSES)]


def picture(rng: np.random.Generator, label: int) -> bytes:
    pixels = rng.integers(0, 60, (24, 24, 3), dtype=np.uint8)
    pixels[label * 2 : label * 2 + 2, :, label % 3] += 150
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve classes of two kinds; half of the images of each are named as tests."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("protocols")
    with zipfile.ZipFile(folder / "items.zip", "w") as archive:
        for label, name in enumerate(NAMES):
            for n in range(EACH):
                part = "test" if n % 2 else "train"
                archive.writestr(f"all/{name}/{part}_{n}.png", picture(rng, label))
    rows = [
        f"{name},{'test' if n >= 4 else 'train'},{'even' if n % 2 else 'odd'}" for n, name in enumerate(NAMES)
    ]
    (folder / "split.csv").write_text("\n".join(["class,split,coarse", *rows]) + "\n")
    return folder / "items.zip"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINDRED_CACHE", str(tmp_path / "cache"))


def make_bundle(folder: Path, classes: list[str] | None, **info: Any) -> Path:
    architecture = Architecture(embedding_dim=16)
    network = EmbeddingNetwork(architecture)
    packed = None if classes is None else pack_classes(classes)
    Bundle(network, architecture, Preprocess(size=24), info=info, training_classes=packed).save(folder)
    return folder


def figures(folder: Path) -> dict[str, Any]:
    return {model["name"]: model for model in json.loads((folder / "results.json").read_text())["models"]}


def test_few_shot_among_all_classes_and_within_groups(images: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = [
        "evaluate",
        "--data",
        str(images),
        "--split",
        "test",
        "--out",
        str(tmp_path / "out"),
        "--no-report",
    ]
    few_shot = ["--n-way", "4", "--episodes", "50", "--within", "coarse"]
    assert main([*arguments, *few_shot, "--fail-under", "accuracy@4-way-1-shot=0.9"]) == 0
    found = figures(tmp_path / "out")
    for name in ("accuracy@4-way-1-shot", "accuracy@4-way-1-shot/coarse"):
        low, high = found["raw pixels"]["intervals_95"][name]
        assert 0.9 < low <= found["raw pixels"]["metrics"][name] <= high  # stripes are easy for raw pixels
    assert "4-way-1-shot/coarse" in capsys.readouterr().out
    assert main([*arguments, "--n-way", "5", "--within", "coarse"]) == 2
    assert "fewer than 5 classes of 2 images in any coarse" in capsys.readouterr().err
    assert main([*arguments, "--n-way", "3", "--within", "shape"]) == 2
    assert "no such column" in capsys.readouterr().err
    assert main([*arguments, "--within", "coarse"]) == 2
    assert "--n-way" in capsys.readouterr().err


def test_floors_alone_of_queries_against_a_gallery(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert evaluate(data=str(images), query="test_*", gallery="train_*", out=out, report=False) == 0
    found = figures(out)
    assert list(found) == ["raw pixels", "colour histogram", "untrained"]
    assert found["raw pixels"]["metrics"]["queries"] == 8 * EACH / 2
    assert not found["raw pixels"]["thresholds"]


def test_classes_of_the_training_are_refused(images: Path, tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(0)
    bundle = make_bundle(tmp_path / "run" / "bundle", NAMES[:4])
    options: dict[str, Any] = {
        "bundle": [bundle],
        "data": str(images),
        "out": tmp_path / "out",
        "report": False,
    }
    for split in ("all", "train"):
        with pytest.raises(InputError, match=r"was trained on (4 of the 12|2 of the 2) classes"):
            evaluate(**options, split=split)
    assert main(["evaluate", "--bundle", str(bundle), "--data", str(images), "--split", "all"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert evaluate(**options, split="test") == 0
    assert "trained on" not in capsys.readouterr().out
    assert evaluate(**options, split="all", allow_seen_classes=True) == 0
    assert "trained on 4 of the 12 classes" in " ".join(capsys.readouterr().out.split())


def test_a_bundle_is_tested_on_its_own_split(images: Path, tmp_path: Path) -> None:
    """Another seed than the default tests other classes; a plain evaluation would test trained ones."""
    unsplit = tmp_path / "unsplit" / "items.zip"
    unsplit.parent.mkdir()
    unsplit.write_bytes(images.read_bytes())  # without split.csv beside it
    settings = SplitSettings(seed=3, test_fraction=0.5)
    table = open_source(str(unsplit)).table()
    parts = settings.apply(table)
    trained = [table.class_names[label] for label in np.unique(table.labels[parts.rows("train")])]
    bundle = make_bundle(tmp_path / "bundle", trained, split=settings.to_dict(), split_hash=parts.hash)
    evaluate(bundle=[bundle], data=str(unsplit), out=tmp_path / "out", report=False)
    data = json.loads((tmp_path / "out" / "results.json").read_text())["data"]
    assert (data["split_hash"], data["classes"]) == (parts.hash, 6)
    damaged = make_bundle(tmp_path / "damaged", trained, split={"colour": "red"})
    with pytest.raises(InputError, match="split settings"):
        evaluate(bundle=[damaged], data=str(unsplit), out=tmp_path / "out")


@pytest.mark.filterwarnings("ignore:.*split per image")
def test_a_split_per_image_is_told_of(images: Path, tmp_path: Path, capsys: Any) -> None:
    unsplit = tmp_path / "unsplit" / "items.zip"
    unsplit.parent.mkdir()
    unsplit.write_bytes(images.read_bytes())
    settings = SplitSettings("per_image", test_fraction=0.5)
    parts = settings.apply(open_source(str(unsplit)).table())
    bundle = make_bundle(tmp_path / "bundle", NAMES, split=settings.to_dict(), split_hash=parts.hash)
    evaluate(bundle=[bundle], data=str(unsplit), out=tmp_path / "out", report=False)
    assert "do not hold for new classes" in " ".join(capsys.readouterr().out.split())
