"""Verification on the shared LFW pairs and on the official 10-fold layout, against scikit-learn."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

from app.commands.evaluate import evaluate
from app.evaluation.baselines import centred, raw_pixels
from app.evaluation.evaluation_set import select_images


def reference_accuracy(similarity: np.ndarray, same: np.ndarray, folds: np.ndarray) -> float:
    accuracies = []
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        far, tar, thresholds = roc_curve(same[train], similarity[train], drop_intermediate=False)
        right = tar * same[train].sum() + (1 - far) * (~same[train]).sum()
        accuracies.append(
            ((similarity[test] >= thresholds[right.argmax() :][:2].mean()) == same[test]).mean()
        )
    return float(np.mean(accuracies))


def official_layout(rows: list[dict[str, str]], path: Path) -> None:
    """The shared pairs as LFW's pairs.txt: ten folds of 100 same and 100 different pairs."""

    def parts(name: str) -> tuple[str, int]:
        person, file = name.split("/")
        return person, int(file.removesuffix(".jpg").rsplit("_", 1)[1])

    same = [row for row in rows if row["same"] == "1"]
    different = [row for row in rows if row["same"] == "0"]
    lines = ["10\t100"]
    for fold in range(10):
        for row in same[fold * 100 : fold * 100 + 100]:
            (person, first), (_, second) = parts(row["image_a"]), parts(row["image_b"])
            lines.append(f"{person}\t{first}\t{second}")
        for row in different[fold * 100 : fold * 100 + 100]:
            (person, first), (other, second) = parts(row["image_a"]), parts(row["image_b"])
            lines.append(f"{person}\t{first}\t{other}\t{second}")
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def faces(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KINDRED_CACHE", str(tmp_path / "cache"))
    return shared_data / "lfw_faces"


@pytest.mark.slow
def test_pairs_equal_a_reference_with_scikit_learn(faces: Path, tmp_path: Path) -> None:
    with (faces / "pairs_test.csv").open() as file:
        rows = list(csv.DictReader(file))
    same = np.array([row["same"] == "1" for row in rows])
    official = tmp_path / "pairs.txt"
    official_layout(rows, official)

    table = select_images(str(faces / "lfw_faces_96.zip"), "test").images
    opened = [Image.open(io.BytesIO(table.read(row))) for row in range(len(table))]
    pixels = centred(np.stack([raw_pixels(image) for image in opened])).astype(float)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    place = {"/".join(table.name(row).split("/")[-2:]): row for row in range(len(table))}
    similarity = np.array([pixels[place[r["image_a"]]] @ pixels[place[r["image_b"]]] for r in rows])

    vectors = tmp_path / "pixels.npy"
    np.save(vectors, pixels.astype(np.float32))
    found = {}
    for pairs in (faces / "pairs_test.csv", official):
        out = tmp_path / pairs.stem
        evaluate(
            embeddings=[vectors],
            data=str(faces / "lfw_faces_96.zip"),
            pairs=pairs,
            out=out,
            report=False,
            calibrate=False,
        )
        found[pairs.stem] = json.loads((out / "results.json").read_text())["pairs"]["pixels"]
    kind = np.where(same, np.cumsum(same), np.cumsum(~same))
    own = found["pairs_test"]
    assert own["auc"] == pytest.approx(roc_auc_score(same, similarity), abs=1e-6)
    assert own["accuracy"] == pytest.approx(reference_accuracy(similarity, same, kind % 10), abs=1e-6)
    theirs = found["pairs"]
    assert theirs["auc"] == pytest.approx(roc_auc_score(same, similarity), abs=1e-6)
    assert theirs["accuracy"] == pytest.approx(
        reference_accuracy(similarity, same, (kind - 1) // 100), abs=1e-6
    )
    assert not math.isnan(theirs["accuracy_standard_error"])
