import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.cli import main
from data.sources import open_source
from data.splits import SplitSettings
from models.bundle import Bundle
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess
from serve.store.collection import FaissStore


@pytest.fixture
def options(bundle_folder: Path, image_folder: Path, tmp_path: Path) -> list[str]:
    return ["index", f"--bundle={bundle_folder}", f"--data={image_folder}", f"--store={tmp_path / 'store'}"]


def stored(tmp_path: Path) -> FaissStore:
    return FaissStore.open(tmp_path / "store", read_only=True)


def test_every_image_becomes_an_item(
    options: list[str], bundle_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    assert main(options) == 0
    model = Bundle.load(bundle_folder, device="cpu")
    path = "star/03.jpg"
    with stored(tmp_path) as store:
        assert store.count() == 64
        (item,) = store.get([path], with_vectors=True)
        assert item is not None
        assert item.label == "star"
        np.testing.assert_allclose(item.vector, model.embed([image_folder / path])[0], atol=1e-5)
        thumbnail = store.thumbnail(path)
        assert thumbnail is not None
        assert model.preprocess.open(thumbnail).size == (28, 28)
        (hits,) = store.search(model.embed([image_folder / path]), k=1).hits
        assert hits[0].id == path


def test_a_second_run_embeds_only_what_is_new(
    options: list[str], image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 0
    (image_folder / "star" / "00.jpg").rename(image_folder / "star" / "new.jpg")
    capsys.readouterr()
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "63 of 64 images are in the store already" in printed
    assert "1 images indexed" in printed
    assert main([*options, "--refresh"]) == 0
    assert "64 images indexed" in capsys.readouterr().out


def test_items_of_images_that_are_gone_are_deleted_on_request(
    options: list[str], image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 0
    (image_folder / "star" / "00.jpg").rename(image_folder / "star" / "new.jpg")
    (image_folder / "star" / "01.jpg").unlink()
    assert main(options) == 0
    with stored(tmp_path) as store:
        assert store.count() == 65
    capsys.readouterr()
    assert main([*options, "--prune"]) == 0
    assert "2 items deleted whose images are not in the data" in capsys.readouterr().out
    table = open_source(str(image_folder)).table()
    with stored(tmp_path) as store:
        assert {item.id for item in store.scan()} == {table.name(row) for row in range(len(table))}
    assert main([*options, "--prune", "--split=test"]) == 2
    assert "--prune wants the whole data" in capsys.readouterr().err


def test_broken_images_are_named_counted_and_skipped(
    options: list[str], image_folder: Path, truncated_jpeg: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "star" / "broken.jpg").write_bytes(truncated_jpeg)
    (image_folder / "star" / "empty.jpg").write_bytes(b"")
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "64 images indexed, 2 broken ones skipped" in printed
    assert "star/broken.jpg" in printed
    assert "star/empty.jpg" in printed


def test_only_broken_images_are_an_error(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bad" / "class"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"no image")
    assert (
        main(
            ["index", f"--bundle={bundle_folder}", f"--data={tmp_path / 'bad'}", f"--store={tmp_path / 's'}"]
        )
        == 2
    )
    assert "none of the 1 images could be read" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [SplitSettings(), SplitSettings(test_fraction=0.5, seed=3)])
def test_only_one_split(
    options: list[str], bundle_folder: Path, image_folder: Path, tmp_path: Path, settings: SplitSettings
) -> None:
    """The test classes are those that this model was not trained on."""
    bundle = Bundle.load(bundle_folder, device="cpu")
    bundle.update(bundle_folder, info={"split": settings.to_dict()})
    assert main([*options, "--split=test"]) == 0
    table = open_source(str(image_folder)).table()
    expected = {table.class_names[label] for label in table.labels[settings.apply(table).rows("test")]}
    with stored(tmp_path) as store:
        assert store.labels() == dict.fromkeys(expected, 8)


def test_another_model_is_refused(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 0
    torch.manual_seed(1)
    architecture = Architecture(backbone="conv4", embedding_dim=16)
    other = Bundle(EmbeddingNetwork(architecture), architecture, Preprocess(size=28)).save(tmp_path / "other")
    capsys.readouterr()
    assert main([options[0], f"--bundle={other}", *options[2:]]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--data=nowhere", "nowhere"),
        ("--bundle=nowhere", "no bundle"),
        ("--split=tset", "tset"),
        ("--nonsense", "nonsense"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    name = change.split("=")[0]
    assert main([*(option for option in options if not option.startswith(name)), change]) == 2
    line = capsys.readouterr().err.splitlines()[-1]  # before it, progress of listing the files
    assert line.startswith("kindred: ")
    assert message in line


def test_an_interrupted_run_keeps_what_was_done(
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    upsert = FaissStore.upsert

    def upsert_and_interrupt(self: FaissStore, *args: Any, **kwargs: Any) -> int:
        count = upsert(self, *args, **kwargs)
        os.kill(os.getpid(), signal.SIGINT)  # what Ctrl-C sends
        return count

    monkeypatch.setattr("app.index_images.CHUNK", 16)
    monkeypatch.setattr(FaissStore, "upsert", upsert_and_interrupt)
    assert main(options) == 130
    monkeypatch.undo()
    with stored(tmp_path) as store:
        assert store.count() == 16
    capsys.readouterr()
    assert main(options) == 0
    assert "16 of 64 images are in the store already" in capsys.readouterr().out
    with stored(tmp_path) as store:
        assert store.count() == 64


@pytest.mark.parametrize("option", ["--batch-size=0", "--batch-size=-1", "--thumbnails=-1"])
def test_numbers_that_would_store_nothing(
    options: list[str], tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, option]) == 2
    name, value = option.split("=")
    assert f"{name} {value}: must be at least" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("option", ["--queries=0", "--queries=-1", "--out=nowhere/out.json", "--out=."])
def test_tune_refuses_before_it_measures(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(50, 8)))
    assert main(["index", "tune", f"--embeddings={tmp_path / 'vectors.npy'}", option]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("kindred: " + option.replace("=", " "))
    assert "recall" not in printed.out
