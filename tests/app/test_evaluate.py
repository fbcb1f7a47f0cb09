"""The command on a small set of drawn images and on saved embeddings of several formats."""

import csv
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from app.commands.evaluate import evaluate
from app.evaluation.embedding_files import load_embeddings
from app.evaluation.pairs import read_pairs
from app.memory import parse_size
from data.sources import open_source
from models.bundle import Bundle
from models.errors import InputError
from models.metrics import retrieval_metrics
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess

CLASSES, EACH = 6, 8


def picture(rng: np.random.Generator, label: int) -> bytes:
    pixels = rng.integers(0, 60, (24, 24, 3), dtype=np.uint8)
    pixels[label * 4 : label * 4 + 4, :, label % 3] += 150
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes of striped noise in a ZIP file, one image of them broken."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("images") / "stripes.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for label in range(CLASSES):
            for n in range(EACH):
                archive.writestr(f"stripe_{label}/image_{n}.png", picture(rng, label))
        archive.writestr("stripe_0/broken.png", b"\x89PNG\r\n\x1a\n, but no more")
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINDRED_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    architecture = Architecture(embedding_dim=16)
    folder = tmp_path / "run" / "bundle"
    Bundle(
        EmbeddingNetwork(architecture), architecture, Preprocess(size=24), info={"split_hash": "another"}
    ).save(folder)
    return folder


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def embedded(bundle: Path, images: Path) -> tuple[np.ndarray, np.ndarray]:
    """What a bundle makes of the images that are not broken, and their labels."""
    table = open_source(str(images)).table()
    rows = [row for row in range(len(table)) if "broken" not in table.name(row)]
    return Bundle.load(bundle, "cpu").embed(table.read(row) for row in rows), table.labels[rows]


def test_bundle_beside_its_baselines(images: Path, bundle: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert evaluate(bundle=[bundle], data=str(images), split="all", out=out, rerank=True, index=["Flat"]) == 0
    found = results(out)
    assert [model["name"] for model in found["models"]] == [
        "run",
        "raw pixels",
        "colour histogram",
        "untrained",
    ]
    assert found["data"]["items"] == CLASSES * EACH
    assert "stripe_0/broken.png" in found["data"]["broken"][0]
    assert found["models"][1]["metrics"]["recall@1"] == 1  # stripes are easy for raw pixels
    for model in found["models"]:
        low, high = model["intervals_95"]["recall@1"]
        assert low <= model["metrics"]["recall@1"] <= high
    vectors, labels = embedded(bundle, images)
    for kind, rerank in (("metrics", False), ("reranked", True)):
        wanted = retrieval_metrics(vectors, labels, rerank=rerank)
        shown = found["models"][0][kind]
        assert {name: shown[name] for name in wanted} == pytest.approx(wanted)
    assert found["index"][0]["recall@10"] == 1
    assert {"command", "versions", "seed"} <= found.keys()
    report = (out / "report.html").read_text()
    assert report.lstrip().startswith("<!doctype html>")
    assert report.rstrip().endswith("</html>")
    for told in (
        "<title>Evaluation of run</title>",
        "colour histogram",
        "stripe_5",
        "data:image/jpeg;base64",
    ):
        assert told in report
    rows = list(csv.DictReader((out / "models.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == [model["name"] for model in found["models"]]
    for row, model in zip(rows, found["models"], strict=True):
        assert float(row["recall@1"]) == model["metrics"]["recall@1"]
    assert len((out / "classes.csv").read_text().splitlines()) == CLASSES + 1
    shown = capsys.readouterr().out
    assert "recall@1" in shown
    assert "broken.png" in shown


def test_thresholds_reach_the_bundle(images: Path, bundle: Path, tmp_path: Path) -> None:
    evaluate(bundle=[bundle], data=str(images), split="all", out=tmp_path / "out", report=False)
    model = Bundle.load(bundle)
    assert set(model.thresholds) == {"0.1"}  # 960 different pairs hold too few false accepts at 0.01
    vectors, labels = embedded(bundle, images)
    accepted = (vectors @ vectors.T >= model.thresholds["0.1"])[labels[:, None] != labels]
    assert 0.09 < accepted.mean() <= 0.1
    assert model.info["evaluation"]["metrics"]["recall@1"] == pytest.approx(
        retrieval_metrics(vectors, labels)["recall@1"]
    )
    low, high = (model.info["calibration"][0][end] for end in ("low", "high"))
    assert low <= model.thresholds["0.1"] <= high


def test_a_bundle_of_foreign_code_is_measured_when_trusted(images: Path, tmp_path: Path) -> None:
    architecture = Architecture(
        "torchvision.models.resnet.resnet18", {"num_classes": 8}, embedding_dim=4, normalization="batch"
    )
    network = EmbeddingNetwork(architecture, trust_code=True)
    Bundle(network, architecture, Preprocess(size=24)).save(tmp_path / "bundle")
    arguments: dict[str, Any] = {"bundle": [tmp_path / "bundle"], "data": str(images), "split": "all"}
    with pytest.raises(InputError, match="trust_code"):
        evaluate(**arguments, out=tmp_path / "out")
    assert evaluate(**arguments, out=tmp_path / "out", calibrate=False, trust_code=True) == 0


def test_another_split_than_in_training_is_reported(
    images: Path, bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    evaluate(bundle=[bundle], data=str(images), out=tmp_path / "out", report=False, calibrate=False)
    assert "another split" in capsys.readouterr().out.replace("\n", " ")


def test_several_models_and_a_condition(images: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments: dict[str, Any] = {"bundle": [bundle, bundle], "data": str(images), "split": "all", "out": out}
    assert evaluate(**arguments, report=False, calibrate=False, fail_under=["recall@1=1.01"]) == 1
    assert [model["name"] for model in results(out)["models"][:2]] == ["run", "run (2)"]
    with pytest.raises(InputError, match="f1: not measured"):
        evaluate(**arguments, report=False, calibrate=False, fail_under=["f1=0.5"])


def test_queries_and_gallery_by_file_name(images: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(
        bundle=[bundle], data=str(images), split="all", query="image_0*,image_1*", out=out, calibrate=False
    )
    assert results(out)["models"][0]["metrics"]["queries"] == 2 * CLASSES
    with pytest.raises(InputError, match="0 queries"):
        evaluate(bundle=[bundle], data=str(images), split="all", query="no_such*", out=out)


def save(path: Path, vectors: np.ndarray, labels: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, vectors)
        np.save(path.with_name("labels.npy"), labels)
    elif path.suffix == ".npz":
        np.savez(path, embeddings=vectors, labels=labels, shade=labels % 2)
    else:
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        pq.write_table(pa.table({"embedding": lists, "label": pa.array(labels.astype(str))}), path)
    return path


@pytest.mark.parametrize("ending", [".npy", ".npz", ".parquet"])
def test_saved_embeddings(ending: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, 90)
    vectors = (rng.normal(size=(9, 5))[labels] + rng.normal(size=(90, 5))).astype(np.float32)
    path = save(tmp_path / f"saved{ending}", vectors, labels)
    given = tmp_path / "labels.npy" if ending == ".npy" else None
    assert evaluate(embeddings=[path], labels=given, out=tmp_path / "out", max_queries=80) == 0
    found = results(tmp_path / "out")["models"]
    assert [model["name"] for model in found] == ["saved"]
    wanted = retrieval_metrics(vectors, labels, max_queries=80)
    assert found[0]["metrics"]["map@r"] == pytest.approx(wanted["map@r"])
    assert "need the images" in results(tmp_path / "out")["notes"][0]


def test_several_labels_an_item(tmp_path: Path) -> None:
    vectors = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1.0]])
    tags = np.array(["red;shoe", "red", "hat", "shoe;hat"])
    np.savez(tmp_path / "tags.npz", embeddings=vectors, labels=[0, 0, 1, 2], tags=tags)
    evaluate(embeddings=[tmp_path / "tags.npz"], relevance="tags", out=tmp_path / "out", calibrate=False)
    assert results(tmp_path / "out")["models"][0]["metrics"]["r_precision"] == pytest.approx(0.875)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="without Python objects"):
        load_embeddings(tmp_path / "objects.npy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to evaluate"),
        ({"embeddings": [Path("missing.npy")]}, "no such file"),
        ({"bundle": [Path("missing")]}, "no bundle here"),
        ({"embeddings": [Path("x.npy")], "fail_under": ["recall"]}, "write it as"),
        ({"embeddings": [Path("x.npy")], "memory": "lots"}, "not a size"),
    ],
)
def test_unusable_arguments_are_named(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(**arguments, out=tmp_path / "out")


def test_sizes_in_bytes() -> None:
    assert [parse_size(text) for text in ("512MB", "2 GiB", "10")] == [512 * 2**20, 2**31, 10]


def test_official_layout_of_lfw_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    lines = ["2\t2"]
    for fold in range(2):
        lines += [f"stripe_{fold}\t1\t2", f"stripe_{fold}\t3\t4"]
        lines += [f"stripe_{fold}\t1\tstripe_{fold + 2}\t2", f"stripe_{fold}\t2\tstripe_5\t1"]
    path.write_text("\n".join(lines) + "\n")
    pairs = read_pairs(path)
    assert pairs.first[:3] == ["stripe_0/stripe_0_0001", "stripe_0/stripe_0_0003", "stripe_0/stripe_0_0001"]
    assert pairs.second[2] == "stripe_2/stripe_2_0002"
    assert pairs.same.tolist() == [True, True, False, False] * 2
    assert pairs.folds.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    path.write_text("2\t2\nname\t1\n")
    with pytest.raises(InputError, match="line 2"):
        read_pairs(path)


def test_pairs_of_images(images: Path, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    rows = ["image_a,image_b,same"]
    for n in range(EACH - 1):
        for label in range(CLASSES):
            rows.append(f"stripe_{label}/image_{n}.png,stripe_{label}/image_{n + 1}.png,1")
            rows.append(f"stripe_{label}/image_{n}.png,stripe_{(label + 1) % CLASSES}/image_{n}.png,0")
    rows.append("stripe_9/image_0.png,stripe_0/image_0.png,0")
    path.write_text("\n".join(rows) + "\n")
    out = tmp_path / "out"
    evaluate(bundle=[bundle], data=str(images), split="all", pairs=path, out=out, calibrate=False)
    found = results(out)["pairs"]
    assert found["missing_pairs"] == 1
    assert found["raw pixels"]["accuracy"] == 1
    assert found["raw pixels"]["auc"] == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--help"], "--fail-under"),
        ([], "nothing to evaluate"),
        (["--data=x", "--memory=lots"], "is not a size"),
    ],
)
def test_help_and_unusable_arguments_load_nothing(arguments: list[str], told: str, tmp_path: Path) -> None:
    heavy = ("faiss", "lightning", "matplotlib", "numpy", "PIL", "pyarrow", "sklearn", "torch", "torchvision")
    code = (
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\nfrom app.cli import main\n"
        f"main(['evaluate', *{arguments!r}])\nassert not {{*{heavy!r}}} & {{*sys.modules}}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert told in done.stdout + done.stderr


def test_an_image_does_not_find_itself(images: Path, bundle: Path, tmp_path: Path) -> None:
    """Where all images are queries and gallery, it is as without patterns; a part of them is refused."""
    given = {"bundle": [bundle], "data": str(images), "split": "all", "report": False}
    evaluate(**given, out=tmp_path / "a")
    evaluate(**given, query="*", gallery="*", out=tmp_path / "b")
    first, second = (results(tmp_path / name)["models"][0]["metrics"] for name in "ab")
    assert first == second
    with pytest.raises(InputError, match="images are queries and in the gallery, too"):
        evaluate(**given, query="*0.png", gallery="*", out=tmp_path / "c")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"query": "zz*"}, r"0 queries and .* correct --query 'zz\*'"),
        ({"query": "*0.png", "gallery": "zz"}, r"and 0 gallery .* correct --query '\*0.png' --gallery 'zz'"),
        ({"seed": -1}, "--seed -1: give 0 or more"),
    ],
)
def test_what_selects_nothing_is_named(
    images: Path, bundle: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(bundle=[bundle], data=str(images), split="all", out=tmp_path / "out", **values)
