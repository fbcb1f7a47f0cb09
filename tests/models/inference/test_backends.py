import importlib.util
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import InputError
from models.inference import Model, OnnxRunner, PixelNetwork, Unavailable, optimize, sample_pixels, to_onnx
from models.inference.compiled import compile_network

onnx = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs the extra onnx")


@onnx
def test_onnx_takes_any_batch_and_leaves_its_graph_in_the_cache(model: Model, tmp_path: Path) -> None:
    runner, _ = optimize(model, "onnx", tmp_path)
    for count in (1, 2, 5):
        images = model.samples(count)
        with torch.inference_mode():
            torch.testing.assert_close(runner(images), model.network(images), rtol=0, atol=1e-5)
    (graph,) = tmp_path.rglob("network.onnx")
    written = graph.stat().st_mtime_ns
    optimize(model, "onnx", tmp_path)
    assert graph.stat().st_mtime_ns == written
    assert oct(graph.parent.stat().st_mode & 0o777) == "0o700"


@onnx
def test_a_graph_with_the_normalization_inside(model: Model) -> None:
    import onnx

    network = PixelNetwork(model.network, model.preprocess).eval()
    content = to_onnx(network, model.preprocess, pixels=True, metadata={"kindred.fingerprint": "abc"})
    runner = OnnxRunner(content)
    assert runner.takes_pixels
    pixels = sample_pixels((1, 32, 32), 4)
    with torch.inference_mode():
        expected = model.network(model.preprocess.normalize(pixels))
    torch.testing.assert_close(runner(pixels), expected, rtol=0, atol=1e-5)
    (entry,) = onnx.load_from_string(content).metadata_props
    assert (entry.key, entry.value) == ("kindred.fingerprint", "abc")


@onnx
def test_a_broken_graph_and_a_missing_gpu_are_named() -> None:
    with pytest.raises(Unavailable, match="cannot run the graph"):
        OnnxRunner(b"no graph")
    with pytest.raises(Unavailable, match="cannot use cuda"):
        OnnxRunner(b"no graph", torch.device("cuda"))


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_one_line_says_so(
    package: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    monkeypatch.setattr("models.inference.choice.to_onnx", to_onnx if package != "onnxruntime" else _blank)
    with pytest.raises(
        InputError, match=f"backend onnx: needs the package {package}: install the extra onnx"
    ):
        optimize(model, "onnx", tmp_path)


def _blank(*_: object, **__: object) -> bytes:
    return b""


def test_without_a_compiler(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match=r"backend compiled: needs a C\+\+ compiler: install g\+\+"):
        optimize(model, "compiled", tmp_path)


def test_what_the_compiler_refuses_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)

    class Untraceable(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if np.asarray(images.mean().item()) > 0 else -images

    with pytest.raises(Unavailable, match="cannot be compiled"):
        compile_network(Untraceable(), torch.ones(2, 1, 4, 4), tmp_path / "package.pt2")
    assert not (tmp_path / "package.pt2").exists()


@pytest.mark.skipif("KINDRED_COMPILE" not in os.environ, reason="compiles for a minute; make soak does")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiled_code_comes_back_from_the_cache(model: Model, tmp_path: Path) -> None:
    for _ in range(2):
        runner, made = optimize(model, "compiled", tmp_path)
        images = model.samples(5)
        with torch.inference_mode():
            torch.testing.assert_close(runner(images), model.network(images), rtol=0, atol=1e-5)
            torch.testing.assert_close(runner(images[:1]), model.network(images[:1]), rtol=0, atol=1e-5)
    assert len(list(tmp_path.rglob("network.pt2"))) == 1
    assert made.max_difference["compiled"] < 1e-5
    assert json.dumps(made.to_dict())
