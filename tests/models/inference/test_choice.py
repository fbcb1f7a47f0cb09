import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.errors import InputError
from models.inference import TOLERANCE, Model, choice, optimize
from models.inference.runner import Unavailable


class Scaled:
    """The network's own vectors, plus an error."""

    takes_pixels = False

    def __init__(self, name: str, model: Model, error: float) -> None:
        self.name, self._model, self._error = name, model, error

    @torch.inference_mode()
    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return self._model.network(batch) + self._error


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Backends without a compiler: errors by name, and the names that were built and measured."""
    state: dict[str, object] = {"errors": {}, "built": [], "measured": 0}

    def build(name: str, model: Model, folder: Path, workers: int) -> Scaled:
        state["built"].append(name)
        error = state["errors"].get(name, 0.0)
        if isinstance(error, str):
            raise Unavailable(error)
        return Scaled(name, model, error)

    def measure(runners: dict[str, Scaled], *_: object) -> dict[str, dict[int, float]]:
        state["measured"] += 1
        speed = {"eager": 1.0, "onnx": 3.0, "compiled": 2.0}
        return {name: {1: speed[name]} for name in runners}

    monkeypatch.setattr(choice, "_build", build)
    monkeypatch.setattr(choice, "measure", measure)
    return state


def test_the_fastest_is_measured_once_and_then_known(model: Model, built, tmp_path: Path) -> None:
    runner, made = optimize(model, "auto", tmp_path)
    assert runner.name == made.backend == "onnx"
    assert set(made.images_per_second) == {"eager", "onnx", "compiled"}
    built["built"].clear()
    runner, again = optimize(model, "auto", tmp_path)
    assert runner.name == "onnx"
    assert again == made
    assert built["built"] == ["onnx"]
    assert built["measured"] == 1


def test_another_model_another_thread_count_or_a_damaged_cache_measures_anew(model, built, tmp_path) -> None:
    optimize(model, "auto", tmp_path)
    optimize(replace(model, fingerprint="0" * 16), "auto", tmp_path)
    assert built["measured"] == 2
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        optimize(model, "auto", tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert built["measured"] == 3
    for file in tmp_path.rglob("choice.json"):
        file.write_text(json.dumps({"choice": {"backend": "../evil"}}))
    optimize(model, "auto", tmp_path)
    assert built["measured"] == 4


def test_a_kept_backend_that_no_longer_runs_is_replaced(model: Model, built, tmp_path: Path) -> None:
    optimize(model, "auto", tmp_path)
    built["errors"]["onnx"] = "needs the package onnxruntime: install the extra onnx"
    runner, made = optimize(model, "auto", tmp_path)
    assert runner.name == "compiled"
    assert "onnxruntime" in made.skipped["onnx"]


def test_what_differs_from_the_plain_network_is_not_taken(model: Model, built, tmp_path: Path) -> None:
    built["errors"] |= {"onnx": 2 * TOLERANCE, "compiled": float("nan")}
    runner, made = optimize(model, "auto", tmp_path)
    assert runner.name == "eager"
    assert "over 0.0001" in made.skipped["onnx"]
    assert "over 0.0001" in made.skipped["compiled"]
    with pytest.raises(InputError, match=r"backend onnx: differs from the plain network by 2\.0e-04"):
        optimize(model, "onnx", tmp_path)


def test_errors_name_the_remedy(model: Model, built, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="backend 'tensorrt' is none of auto, eager, compiled, onnx"):
        optimize(model, "tensorrt", tmp_path)
    built["errors"]["compiled"] = "needs a C++ compiler: install g++"
    with pytest.raises(InputError, match=r"backend compiled: needs a C\+\+ compiler"):
        optimize(model, "compiled", tmp_path)


def test_a_cache_that_cannot_be_written_is_done_without(model: Model, built, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    runner, _ = optimize(model, "auto", tmp_path / "file")
    assert runner.name == "onnx"


def test_eager_keeps_nothing(model: Model, tmp_path: Path) -> None:
    runner, made = optimize(model, "eager", tmp_path)
    images = model.samples(3)
    with torch.inference_mode():
        torch.testing.assert_close(runner(images), model.network(images), rtol=0, atol=1e-5)
    assert made.max_difference["eager"] < TOLERANCE
    assert list(tmp_path.iterdir()) == []
