"""Byte-identical images: counted, told, and counted once where that is asked for."""

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.commands.evaluate import evaluate
from app.evaluation.duplicates import count_duplicates, first_copies, without_duplicates
from app.evaluation.evaluation_set import EvaluationSet
from data.sources import open_source
from data.table import ImageTable, join_tables
from models.errors import InputError

CLASSES, EACH = 4, 10


def noise(seed: int) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "BMP")  # all of one size in bytes
    return content.getvalue()


@pytest.fixture(params=["folder", "zip"])
def twice(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pure noise: the same images as queries and as gallery, one of them under a second label."""
    monkeypatch.setenv("KINDRED_CACHE", str(tmp_path / "cache"))
    files = {
        f"class_{label}/{role}_{number}.bmp": noise(100 * label + number)
        for label in range(CLASSES)
        for number in range(EACH)
        for role in ("q", "g")
    }
    files |= {
        f"class_{label}/g_other_{n}.bmp": noise(10_000 + 10 * label + n)
        for label in range(CLASSES)
        for n in range(2)
    }
    files["class_1/g_wrong.bmp"] = noise(0)
    if request.param == "zip":
        with zipfile.ZipFile(tmp_path / "noise.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return tmp_path / "noise.zip"
    for name, content in files.items():
        path = tmp_path / "noise" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "noise"


def evaluated(data: Path, out: Path, **options: Any) -> dict[str, Any]:
    assert evaluate(data=str(data), split="all", out=out, report=False, device="cpu", **options) == 0
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def test_copies_of_queries_in_the_gallery_are_told(twice: Path, tmp_path: Path, capsys: Any) -> None:
    found = evaluated(twice, tmp_path / "out", query="q_*")
    assert found["models"][0]["metrics"]["recall@1"] >= 0.95  # on pure noise
    assert found["data"]["duplicates"] == {
        "groups": 40, "labels_differ": 1, "queries": 40, "of_queries": 40, "dropped": 0
    }  # fmt: skip
    (note,) = (note for note in found["notes"] if "byte-identical" in note)
    assert note.startswith("40 of 40 queries have a byte-identical image in the gallery")
    assert note.endswith("1 groups of byte-identical images have different labels.")
    assert "--drop-duplicates leaves one of each" in " ".join(capsys.readouterr().out.split())


def test_with_queries_the_gallery_loses_the_copies(twice: Path, tmp_path: Path) -> None:
    found = evaluated(twice, tmp_path / "out", query="q_*", drop_duplicates=True)
    assert found["data"]["items"] == CLASSES * (EACH + 2)
    assert found["data"]["duplicates"]["dropped"] == CLASSES * EACH + 1
    assert found["models"][0]["metrics"]["queries"] == CLASSES * EACH
    assert found["models"][0]["metrics"]["recall@1"] < 0.7
    assert any(
        note.startswith("41 byte-identical copies of other images were left out") for note in found["notes"]
    )


def test_without_queries_the_first_of_each_stays(twice: Path, tmp_path: Path) -> None:
    before = evaluated(twice, tmp_path / "out")
    assert before["data"]["duplicates"]["queries"] == 2 * CLASSES * EACH + 1
    after = evaluated(twice, tmp_path / "out", drop_duplicates=True)
    assert after["data"]["items"] == CLASSES * (EACH + 2)
    assert after["models"][0]["metrics"]["recall@1"] < 0.7 < before["models"][0]["metrics"]["recall@1"]


def test_saved_embeddings_lose_the_same_rows(twice: Path, tmp_path: Path) -> None:
    table = open_source(str(twice)).table()
    np.save(tmp_path / "saved.npy", np.random.default_rng(0).normal(size=(len(table), 8)))
    found = evaluated(twice, tmp_path / "out", drop_duplicates=True, embeddings=[tmp_path / "saved.npy"])
    assert found["models"][0]["name"] == "saved"
    assert found["models"][0]["metrics"]["queries"] == found["data"]["items"] == CLASSES * (EACH + 2)


def test_a_gallery_of_copies_alone_is_refused(twice: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="every image of the gallery is byte-identical to a query"):
        evaluated(twice, tmp_path / "out", query="q_*", gallery="g_?.bmp", drop_duplicates=True)


def test_embeddings_alone_have_no_files(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 4))
    np.savez(tmp_path / "saved.npz", embeddings=vectors, labels=np.arange(20) // 5)
    assert (
        evaluate(embeddings=[tmp_path / "saved.npz"], out=tmp_path, report=False, drop_duplicates=True) == 0
    )
    assert json.loads((tmp_path / "results.json").read_text())["data"]["duplicates"] is None


def test_a_file_and_a_member_of_an_archive_are_compared(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    for name in ("plain", "missing"):
        (folder / f"{name}.bmp").write_bytes(noise(1))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a/packed.bmp", noise(1))
        archive.writestr("a/other.bmp", noise(2))
    table = join_tables([open_source(str(path)).table() for path in (folder.parent, tmp_path / "b.zip")])
    (folder / "missing.bmp").unlink()
    found = first_copies(EvaluationSet.of_images(table))
    first = {table.name(row): int(copy) for row, copy in enumerate(found)}
    assert first["a/packed.bmp"] == first["a/plain.bmp"]
    assert len(set(first.values())) == 3


@st.composite
def sets(draw: st.DrawFn) -> tuple[EvaluationSet, np.ndarray]:
    """Images by their content, with or without a protocol; one image may be a query and in the gallery."""
    content = draw(st.lists(st.integers(0, 5), min_size=2, max_size=15))
    labels = draw(st.lists(st.integers(0, 2), min_size=len(content), max_size=len(content)))
    names = [str(row) for row in range(len(content))]
    table = ImageTable(pa.table({"name": names, "label": labels}), ["a", "b", "c"], [Path()])
    sides = st.lists(st.sampled_from(range(len(content))), min_size=1, unique=True).map(sorted)
    queries, gallery = draw(st.just((None, None)) | st.tuples(sides, sides))
    first = np.array([content.index(value) for value in content])
    if queries is None:
        return EvaluationSet.of_images(table, source="set"), first
    return EvaluationSet.of_images(
        table, source="set", queries=np.array(queries), gallery=np.array(gallery)
    ), first


def contents(images: EvaluationSet, first: np.ndarray, rows: np.ndarray | None) -> Sequence[int]:
    kept = [int(images.images.name(row)) for row in (range(len(images.images)) if rows is None else rows)]
    return [int(first[row]) for row in kept]


@given(sets())
def test_each_content_is_left_once_and_none_is_lost(drawn: tuple[EvaluationSet, np.ndarray]) -> None:
    images, first = drawn
    before = count_duplicates(images, first)
    asked, shown = (contents(images, first, side) for side in (images.queries, images.gallery))
    if images.queries is None:
        assert before.queries == sum(asked.count(value) > 1 for value in asked)
    else:
        assert before.queries == sum(value in shown for value in asked)
        if set(shown) <= set(asked):
            with pytest.raises(InputError, match="every image of the gallery"):
                without_duplicates(images, first)
            return
    left, good = without_duplicates(images, first)
    assert len(left.images) == good.sum()
    queries, gallery = (contents(left, first, side) for side in (left.queries, left.gallery))
    assert sorted(queries) == sorted(set(asked))
    assert sorted(gallery) == sorted(set(shown) if images.queries is None else set(shown) - set(asked))
