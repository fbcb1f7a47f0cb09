"""``kindred export`` and ``kindred evaluate`` on what it wrote, with a network of a few thousand weights."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from app.cli import main
from app.export import formats
from models.bundle import Bundle
from models.errors import InputError
from models.inference import PixelNetwork
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs the extra onnx"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def write_bundle(folder: Path) -> Path:
    torch.manual_seed(0)
    architecture = Architecture(backbone_args={"width": 8}, in_channels=3, embedding_dim=16)
    network = EmbeddingNetwork(architecture)
    for _ in range(3):
        network.train()(torch.randn(8, 3, 28, 28))
    return Bundle(network, architecture, Preprocess(size=28)).save(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture(scope="module")
def with_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an ONNX file; copy it to change it."""
    folder = write_bundle(tmp_path_factory.mktemp("exported") / "bundle")
    assert main(["export", str(folder), "--onnx"]) == 0
    return folder


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_every_format_is_checked_and_described(folder: Path, image_folder: Path, tmp_path: Path) -> None:
    arguments = ["--torch-export", "--onnx", "--quantize", "dynamic", "--quantize", "static", "--images", "9"]
    arguments += ["--calibration-images", "20", "--licence", "mit"]
    assert main(["export", str(folder), *arguments, "--data", str(image_folder)]) == 0
    original = Bundle.load(folder, "cpu")
    assert set(original.exports) == {
        "model.pt2", "model.onnx", "model.int8-dynamic.onnx", "model.int8-static.onnx",
    }  # fmt: skip
    images = sorted(image_folder.rglob("*.jpg"))[:11]
    expected = original.embed(images)
    for name in ("model.onnx", "model.int8-dynamic.onnx", "model.int8-static.onnx"):
        record, loaded = original.exports[name], Bundle.load(folder / name, "cpu")
        difference = float(np.abs(loaded.embed(images) - expected).max())
        exact = name == "model.onnx"
        assert (difference < 1e-5) == exact
        assert (record["parity"]["max_difference"] < 1e-5) == exact
        assert (loaded.fingerprint == original.fingerprint) == exact
        assert loaded.backend == "onnx"
        assert (loaded.embed(images) * expected).sum(1).min() > 0.9
        assert record["parity"]["images"] == 9
        assert record["parity"]["source"] == "images, test"
        assert record["bytes"] == (folder / name).stat().st_size
    program = torch.export.load(folder / "model.pt2").module()
    batch = original.preprocess.normalize(torch.randint(0, 255, (3, 3, 28, 28), dtype=torch.uint8))
    with torch.inference_mode():
        torch.testing.assert_close(program(batch), original.embed_tensor(batch), rtol=0, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert "| `model.int8-static.onnx` | int8 static | float32, batch×3×28×28 |" in card
    assert "license: mit" in card

    bundles = [f"--bundle={folder}", f"--bundle={folder / 'model.int8-static.onnx'}"]
    options = [f"--data={image_folder}", "--split=all", f"--out={tmp_path / 'out'}", "--no-report"]
    assert main(["evaluate", *bundles, *options]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["models"][1]["name"].endswith("/model.int8-static")
    assert all("recall@1" in model["metrics"] for model in results["models"])
    assert Bundle.load(folder, "cpu").info["evaluation"]["intervals_95"]["recall@1"]


def test_preprocessing_inside_the_graph(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    assert main(["export", str(folder), "--onnx", "--with-preprocessing", "--out", str(out)]) == 0
    assert not Bundle.load(folder, "cpu").exports
    loaded = Bundle.load(out / "model.onnx", "cpu")
    record = loaded.exports["model.onnx"]
    assert record["input"] == {
        "dtype": "uint8", "shape": ["batch", 3, 28, 28], "normalization_inside": True,
    }  # fmt: skip
    assert record["parity"]["source"] == "random numbers"
    pixels = torch.randint(0, 255, (4, 3, 28, 28), dtype=torch.uint8)
    expected = Bundle.load(folder, "cpu").embed_pixels(pixels)
    torch.testing.assert_close(loaded.embed_pixels(pixels), expected, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="normalizes by itself"):
        loaded.embed_tensor(torch.zeros(1, 3, 28, 28))


def test_an_export_that_disagrees_is_not_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(PixelNetwork):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return super().forward(pixels) + 0.01

    monkeypatch.setattr(formats, "PixelNetwork", Wrong)
    for option, name in (("--onnx", "model.onnx"), ("--torch-export", "model.pt2")):
        line = error_of(capsys, "export", folder, option, "--with-preprocessing")
        assert f"{name}: differs from the original by 1.0e-02" in line
        assert not (folder / name).exists()
    assert not Bundle.load(folder, "cpu").exports


def test_a_damaged_or_foreign_file_is_refused(with_onnx: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(with_onnx, tmp_path / "copy")
    content = bytearray((folder / "model.onnx").read_bytes())
    (folder / "other.onnx").write_bytes(content)
    with pytest.raises(InputError, match="does not know this file"):
        Bundle.load(folder / "other.onnx")
    content[-10] ^= 1
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match="does not match its checksum"):
        Bundle.load(folder / "model.onnx")
    (folder / "model.onnx").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        Bundle.load(folder / "model.onnx")


def test_bad_input_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "name them with --data" in error_of(capsys, "export", folder, "--quantize", "static")
    assert "such as apache-2.0" in error_of(capsys, "export", folder, "--licence", "All rights!")
    assert "must be at least 1" in error_of(capsys, "export", folder, "--onnx", "--images", "0")
    assert "no such checkpoint" in error_of(capsys, "export", tmp_path / "none.ckpt", "--out", tmp_path / "b")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else found(name))
    assert "needs the package onnx: install the extra onnx" in error_of(capsys, "export", folder, "--onnx")


def test_a_served_onnx_file_keeps_its_backend(with_onnx: Path) -> None:
    loaded = Bundle.load(with_onnx / "model.onnx", "cpu")
    assert loaded.optimize("auto") is loaded
    with pytest.raises(InputError, match="this model runs on onnx"):
        loaded.optimize("eager")
