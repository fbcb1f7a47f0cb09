"""The saved model: a folder of safetensors and JSON, loaded without running code from it."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.bundle_files import (
    FORMAT,
    MANIFEST,
    WEIGHTS,
    fingerprint_of,
    read_manifest,
    write_bundle,
    write_manifest,
)
from models.cache_folder import cache_root
from models.errors import InputError, first_line
from models.inference import Choice, Model, OnnxRunner, Runner, Unavailable, optimize
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import ImageError, Preprocess

ImageSource = bytes | str | Path | Image.Image


@dataclass(eq=False)
class Bundle:
    """An embedding network with everything that inference needs.

    Attributes:
        network: Maps float32 (B, C, H, W) to unit vectors, float32 (B, dim). In evaluation mode.
        architecture: From which the network is rebuilt.
        preprocess: Turns an encoded image into the network's input.
        info: Plain JSON about the training: metrics, split hash, class counts, versions.
        thresholds: Cosine similarity from which two images count as the same class, keyed by the false accept
            rate that it was calibrated for, for example ``{"0.001": 0.71}``.
        fingerprint: Identifies the vectors: 16 hexadecimal digits over weights, architecture and
            preprocessing; computed where it is left out.
        training_classes: Digests of the names of the training classes, by which an evaluation detects that
            it tests on them; None where they are not known.
        exports: Records of the exported files (ONNX and others) by file name, with their checksum,
            fingerprint and difference from the original.
        runner: The backend that runs the network; None runs the network itself, as trained.
        choice: How :meth:`optimize` chose the runner, where it did.
    """

    network: nn.Module
    architecture: Architecture
    preprocess: Preprocess
    info: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    fingerprint: str = ""
    training_classes: str | None = None
    exports: dict[str, dict[str, Any]] = field(default_factory=dict)
    runner: Runner | None = None
    choice: Choice | None = None

    def __post_init__(self) -> None:
        self.network.eval()
        if not self.fingerprint:
            self.fingerprint = fingerprint_of(self.network.state_dict(), self.architecture, self.preprocess)

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.architecture.embedding_dim

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    @property
    def backend(self) -> str:
        """The name of the backend: "plain", "eager", "compiled" or "onnx"."""
        return "plain" if self.runner is None else self.runner.name

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto", *, trust_code: bool = False) -> "Bundle":
        """Read a bundle and verify it.

        Args:
            folder: A folder that :meth:`save` wrote, or an ONNX file in one, which then computes the
                embeddings.
            device: "auto" takes CUDA where it is available.
            trust_code: Allow an architecture whose backbone is a class outside the known packages. The
                class is imported, so its code runs: only for bundles of your own.

        Raises:
            InputError: The folder is not a bundle, is damaged, or needs code that is not trusted.
        """
        folder, file = Path(folder), None
        if folder.suffix == ".onnx" and not folder.is_dir():
            folder, file = folder.parent, folder
        manifest = read_manifest(folder)
        try:
            architecture = Architecture.from_dict(manifest["architecture"])
            preprocess = Preprocess.from_dict(manifest["preprocess"])
            expected = manifest["fingerprint"]
            info, exports = dict(manifest.get("info", {})), dict(manifest.get("exports", {}))
            thresholds = {key: float(value) for key, value in dict(manifest.get("thresholds", {})).items()}
        except KeyError as error:
            raise InputError(f"{folder / MANIFEST}: lacks {error}; export the bundle again") from error
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{folder / MANIFEST}: {first_line(error)}; "
                "update Kindred if a newer version made the bundle, else export it again"
            ) from error
        network = EmbeddingNetwork(architecture, trust_code=trust_code)
        try:
            weights = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{folder / WEIGHTS}: cannot be read ({error}); export the bundle again"
            ) from error
        if fingerprint_of(weights, architecture, preprocess) != expected:
            raise InputError(
                f"{folder}: weights do not match the fingerprint; the bundle is damaged, copy it again"
            )
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{folder}: weights do not fit the architecture ({reason})") from error
        place = usable_device(device)
        runner = None
        if file is not None:
            runner, expected = _open_export(file, exports, place)
        return cls(
            network.to(place),
            architecture,
            preprocess,
            info=info,
            thresholds=thresholds,
            fingerprint=expected,
            training_classes=manifest.get("training_classes"),
            exports=exports,
            runner=runner,
        )

    def optimize(
        self,
        backend: str = "auto",
        *,
        cache: Path | None = None,
        workers: int = 1,
        meanwhile: str | None = None,
    ) -> "Bundle":
        """The same model for inference, with normalization folded into convolutions, on a fast backend.

        Args:
            backend: "eager" is torch with the folded network, "compiled" is torch's Inductor, "onnx" is ONNX
                Runtime. "auto" measures which is fastest on this machine; this takes up to minutes once, and
                later calls read the choice from the cache. Each is checked against the plain network.
            cache: Folder for choices, graphs and compiled code, writable by this user alone; by default
                `inference` in `models.cache_folder.cache_root`.
            workers: Number of batches that may run at the same time.
            meanwhile: With "auto", the backend to take at once while the cache has no choice, in place of
                measuring; `choice.provisional` then says so.

        Raises:
            InputError: The backend is unknown, cannot run here or gives different vectors; or this bundle
                is an ONNX file and another backend is named.
        """
        if self.runner is not None:
            if backend not in ("auto", self.backend):
                raise InputError(
                    f"backend {backend}: this model runs on {self.backend}; name its folder instead"
                )
            return self
        model = Model(self.network, self.preprocess, self.fingerprint)
        folder = cache or cache_root() / "inference"
        runner, choice = optimize(model, backend, folder, workers, meanwhile)
        return replace(self, runner=runner, choice=choice)

    def save(self, folder: str | Path) -> Path:
        """Write the bundle; it replaces an existing one, with its exports, only once it is complete.

        Raises:
            InputError: The folder exists and is not a bundle, or cannot be written.
        """
        state = self.network.state_dict()
        return write_bundle(Path(folder), state, self._manifest() | {"exports": {}})

    def update(
        self,
        folder: str | Path,
        *,
        info: Mapping[str, Any] | None = None,
        thresholds: Mapping[str, float] | None = None,
        exports: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        """Add to the description of a saved bundle: metrics after an evaluation, thresholds, exports.

        The weights and the fingerprint do not change.

        Raises:
            InputError: The folder holds another model.
        """
        self.info.update(info or {})
        self.thresholds.update(thresholds or {})
        self.exports.update(exports or {})
        folder = Path(folder)
        if read_manifest(folder)["fingerprint"] != self.fingerprint:
            raise InputError(f"{folder}: holds another model than the one that was measured")
        write_manifest(folder, self._manifest())

    def _manifest(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "architecture": self.architecture.to_dict(),
            "preprocess": self.preprocess.to_dict(),
            "fingerprint": self.fingerprint,
            "dim": self.dim,
            "info": self.info,
            "thresholds": self.thresholds,
            "training_classes": self.training_classes,
            "exports": self.exports,
        }

    @torch.inference_mode()
    def embed_tensor(self, batch: Tensor) -> Tensor:
        """Embed preprocessed images, float32 (B, C, H, W) on any device, as unit vectors, float32 (B, dim).

        Raises:
            InputError: This is an ONNX file that includes the normalization and so takes only pixels.
        """
        if self.runner is not None and self.runner.takes_pixels:
            raise InputError("this ONNX file normalizes by itself: embed images, or pixels by embed_pixels")
        vectors: Tensor = (self.runner or self.network)(batch.to(self.device, non_blocking=True))
        return vectors.float()

    @torch.inference_mode()
    def embed_pixels(self, batch: Tensor) -> Tensor:
        """Embed decoded and resized images, uint8 (B, C, H, W), as unit vectors, float32 (B, dim).

        Raises:
            InputError: The batch is of another dtype.
        """
        if batch.dtype != torch.uint8:
            raise InputError(f"pixels are uint8, not {batch.dtype}; use embed_tensor for preprocessed images")
        pixels = batch.to(self.device, non_blocking=True)
        if self.runner is not None and self.runner.takes_pixels:
            return self.runner(pixels)
        return self.embed_tensor(self.preprocess.normalize(pixels))

    def embed_each(
        self, images: Iterable[ImageSource], batch_size: int = 64
    ) -> Iterator[NDArray[np.float32] | ImageError]:
        """Embed a stream of images.

        Threads decode ahead of the network; at most two batches are in memory.

        Args:
            images: Encoded bytes, paths of files or Pillow images.
            batch_size: Images per forward pass.

        Yields:
            For each image, in order, its unit vector, float32 (dim,), or the error where it is unusable.

        Raises:
            InputError: There is one image in place of several, or the batch size is below 1.
        """
        if isinstance(images, str | bytes | Path | Image.Image):
            raise InputError("embed takes several images: put a single one into a list")
        if batch_size < 1:
            raise InputError(f"batch size {batch_size} must be at least 1")
        return self._embed_each(images, batch_size)

    def _embed_each(
        self, images: Iterable[ImageSource], batch_size: int
    ) -> Iterator[NDArray[np.float32] | ImageError]:
        def decode(source: ImageSource) -> Tensor | ImageError:
            try:
                image = self.preprocess.open(Path(source) if isinstance(source, str) else source)
                return self.preprocess.tensor(image)
            except ImageError as error:
                return error

        stream = iter(images)
        with ThreadPoolExecutor(2) as pool:
            ahead = [pool.submit(decode, source) for source in islice(stream, batch_size)]
            while ahead:
                inputs = [future.result() for future in ahead]
                ahead = [pool.submit(decode, source) for source in islice(stream, batch_size)]
                good = [item for item in inputs if isinstance(item, Tensor)]
                vectors = iter(self.embed_pixels(torch.stack(good)).cpu().numpy() if good else ())
                for item in inputs:
                    yield next(vectors) if isinstance(item, Tensor) else item

    def embed(self, images: Iterable[ImageSource], batch_size: int = 64) -> NDArray[np.float32]:
        """Embed images as unit vectors, float32 (N, dim); see :meth:`embed_each`.

        Raises:
            ImageError: An image is unusable; the message says which.
        """
        vectors = []
        for position, vector in enumerate(self.embed_each(images, batch_size)):
            if isinstance(vector, ImageError):
                raise ImageError(f"image {position}: {vector}")
            vectors.append(vector)
        return np.stack(vectors) if vectors else np.empty((0, self.dim), np.float32)


def _open_export(file: Path, exports: Mapping[str, Any], device: torch.device) -> tuple[Runner, str]:
    """The runner of an ONNX file and the fingerprint of its vectors."""
    if (record := exports.get(file.name)) is None:
        raise InputError(f"{file}: its bundle does not know this file; kindred export --onnx makes one")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); export it again") from error
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise InputError(f"{file}: does not match its checksum in the bundle; export it again")
    try:
        return OnnxRunner(content, device), record["fingerprint"]
    except Unavailable as error:
        raise InputError(f"{file}: {error}") from error


def usable_device(name: str) -> torch.device:
    """The device with a name; "auto" is CUDA where it is available, else the CPU.

    Raises:
        InputError: torch cannot use the device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} is not usable ({first_line(error)}); try cpu") from error
