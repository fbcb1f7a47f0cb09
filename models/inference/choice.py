"""Chooses the backend: by a measurement on this machine, which is cached."""

import hashlib
import json
import logging
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import InputError
from models.files import replacing
from models.inference.compiled import CompiledRunner, compile_network
from models.inference.onnx import OnnxRunner, to_onnx
from models.inference.runner import EagerRunner, Runner, Unavailable, folded
from models.inference.speed import fastest, machine, measure, versions
from models.preprocess import Preprocess

log = logging.getLogger("kindred.inference")

BACKENDS = ("auto", "eager", "compiled", "onnx")
TOLERANCE = 1e-4  # largest difference from the plain network in any coordinate of a unit vector
BATCHES = (1, 8, 32)  # a server's micro-batches: a single image, under load, at the limit
_FORMAT = 1


@dataclass(frozen=True)
class Choice:
    """The backend chosen for a network on a machine.

    Attributes:
        backend: its name.
        images_per_second: of each measured backend, by batch size; empty without a measurement.
        max_difference: of each backend from the plain network, on sample images.
        skipped: for each other backend, why it cannot be used.
        provisional: whether "auto" took it because no measurement is kept yet.
    """

    backend: str
    images_per_second: dict[str, dict[str, float]] = field(default_factory=dict)
    max_difference: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    provisional: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode on its device, with its preprocessing and fingerprint."""

    network: nn.Module
    preprocess: Preprocess
    fingerprint: str

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    def samples(self, count: int) -> Tensor:
        """Sample input, float32 (count, C, H, W), on the device."""
        pixels = sample_pixels(self.preprocess.shape, count)
        return self.preprocess.normalize(pixels).to(self.device)


def optimize(
    model: Model, backend: str, cache: Path, workers: int = 1, meanwhile: str | None = None
) -> tuple[Runner, Choice]:
    """A runner for a network, with the named backend or the fastest one, and how it was chosen.

    Arguments as of :meth:`models.bundle.Bundle.optimize`. Compiled code in the cache is executed: it must be
    writable by this user alone.

    Raises:
        InputError: the backend is unknown, cannot run here, or differs from the plain network by more than
            `TOLERANCE`.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is none of {', '.join(BACKENDS)}")
    with tempfile.TemporaryDirectory() as scratch:
        # Folding is fast: there is nothing to cache.
        folder = Path(scratch) if backend == "eager" else _folder(model, cache, Path(scratch))
        name = backend
        if backend == "auto":
            if (kept := _read(folder)) is not None:
                runners, _ = _build_all([kept.backend], model, folder, workers)
                if runners:
                    return runners[kept.backend], kept
            if meanwhile is None:
                return _measured(model, folder, workers)
            name = meanwhile
        runners, choice = _build_all([name], model, folder, workers)
        if not runners:
            raise InputError(f"backend {name}: {choice.skipped[name]}; try another one, or auto")
        # Without a cache, no other process can measure for this one: the choice is final.
        provisional = backend == "auto" and folder != Path(scratch)
        return runners[name], replace(choice, backend=name, provisional=provisional)


def _measured(model: Model, folder: Path, workers: int) -> tuple[Runner, Choice]:
    log.warning(
        "finding out how this machine runs model %s fastest: a minute or more, once; backend=eager skips it",
        model.fingerprint,
    )
    runners, choice = _build_all(["eager", "onnx", "compiled"], model, folder, workers)
    if not runners:
        raise InputError(f"backend auto: none runs this model ({'; '.join(choice.skipped.values())})")
    speeds = measure(runners, model.samples(max(BATCHES)), BATCHES)
    rounded = {name: {str(n): round(s, 1) for n, s in of.items()} for name, of in speeds.items()}
    choice = replace(choice, backend=fastest(speeds), images_per_second=rounded)
    kept = {"choice": choice.to_dict(), "versions": versions(), **machine(model.device)}
    with replacing(folder / "choice.json") as fresh:
        fresh.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    log.info("model %s runs on %s: %s", model.fingerprint, choice.backend, json.dumps(choice.to_dict()))
    return runners[choice.backend], choice


def _build_all(
    names: list[str], model: Model, folder: Path, workers: int
) -> tuple[dict[str, Runner], Choice]:
    """The runners that work and agree with the plain network, and why the others do not."""
    runners: dict[str, Runner] = {}
    differences: dict[str, float] = {}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            runner = _build(name, model, folder, workers)
            differences[name] = _difference(runner, model)
        except Unavailable as reason:
            skipped[name] = str(reason)
            continue
        if differences[name] <= TOLERANCE:
            runners[name] = runner
        else:
            skipped[name] = f"differs from the plain network by {differences[name]:.1e}, over {TOLERANCE:g}"
    return runners, Choice("", {}, differences, skipped)


def _build(name: str, model: Model, folder: Path, workers: int) -> Runner:
    if name == "eager":
        return EagerRunner(model.network)
    if name == "onnx":
        graph = folder / "network.onnx"
        if not graph.is_file():
            with replacing(graph) as fresh:
                fresh.write_bytes(to_onnx(folded(model.network).cpu(), model.preprocess))
        return OnnxRunner(graph.read_bytes(), model.device)
    package = folder / "network.pt2"
    if not package.is_file():
        compile_network(model.network, model.samples(2), package)
    return CompiledRunner(package, workers)


def _difference(runner: Runner, model: Model) -> float:
    """Largest difference from the plain network, over a batch and over a single image."""
    images = model.samples(8)
    with torch.inference_mode():
        expected = model.network(images).float().cpu()
    found = torch.cat([runner(images[:1]).cpu(), runner(images[1:]).cpu()])
    return float((found - expected).abs().nan_to_num(torch.inf).max())


def _folder(model: Model, cache: Path, scratch: Path) -> Path:
    """The cache folder for this model, this machine and the installed versions."""
    conditions = {"format": _FORMAT, "versions": versions(), **machine(model.device), "batches": BATCHES}
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / f"{model.fingerprint}-{digest}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        log.warning(
            "cache %s cannot be written (%s): no measurement is kept; set KINDRED_CACHE to another folder",
            cache,
            error.strerror,
        )
        return scratch


def _read(folder: Path) -> Choice | None:
    try:
        choice = Choice(**json.loads((folder / "choice.json").read_text(encoding="utf-8"))["choice"])
    except (OSError, ValueError, TypeError, KeyError):  # none yet, or damaged
        return None
    return choice if choice.backend in BACKENDS[1:] else None


def sample_pixels(shape: tuple[int, int, int], count: int, seed: int = 0) -> Tensor:
    """Random images of coarse shapes with fine noise, of a shape (C, H, W): uint8 (count, C, H, W).

    They exercise more of a network's range than noise alone.
    """
    channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    shapes = functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    noise = torch.rand(count, channels, height, width, generator=generator)
    return ((shapes * 0.8 + noise * 0.2) * 255).round().to(torch.uint8)
