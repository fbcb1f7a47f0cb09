"""The saved model: a folder of safetensors and JSON, loaded without running anything it contains."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.errors import InputError
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import ImageError, Preprocess

FORMAT = 1
WEIGHTS = "model.safetensors"
MANIFEST = "bundle.json"

ImageSource = bytes | str | Path | Image.Image


@dataclass(eq=False)
class Bundle:
    """An embedding network with all that inference needs.

    Attributes:
        network: Maps float32 (B, C, H, W) to unit vectors, float32 (B, dim). In evaluation mode.
        architecture: From which the network is rebuilt.
        preprocess: Turns an encoded image into the network's input.
        info: Plain JSON about the training: metrics, split hash, class counts, versions.
        thresholds: Cosine similarity at which two images count as the same class, keyed by the false-accept
            rate it was calibrated for, for example ``{"0.001": 0.71}``.
    """

    network: nn.Module
    architecture: Architecture
    preprocess: Preprocess
    info: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    fingerprint: str = ""

    def __post_init__(self) -> None:
        self.network.eval()
        if not self.fingerprint:
            self.fingerprint = _fingerprint(self.network.state_dict(), self.architecture, self.preprocess)

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.architecture.embedding_dim

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return next(self.network.parameters()).device

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto", *, trust_code: bool = False) -> "Bundle":
        """Read a bundle and verify it.

        Args:
            folder: What :meth:`save` wrote.
            device: "auto" takes CUDA where there is one.
            trust_code: Allow an architecture whose backbone is a class outside the known packages. The
                class is imported, so its code runs: only for bundles of your own.

        Raises:
            InputError: The folder is no bundle, is damaged, or needs code that is not trusted.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        try:
            architecture = Architecture.from_dict(manifest["architecture"])
            preprocess = Preprocess.from_dict(manifest["preprocess"])
            expected = manifest["fingerprint"]
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder / MANIFEST}: lacks {error}; export the bundle again") from error
        network = EmbeddingNetwork(architecture, trust_code=trust_code)
        try:
            weights = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{folder / WEIGHTS}: cannot be read ({error}); export the bundle again"
            ) from error
        if _fingerprint(weights, architecture, preprocess) != expected:
            raise InputError(
                f"{folder}: weights do not match the fingerprint; the bundle is damaged, copy it again"
            )
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{folder}: weights do not fit the architecture ({reason})") from error
        network.to(_device(device))
        return cls(
            network,
            architecture,
            preprocess,
            info=dict(manifest.get("info", {})),
            thresholds={str(key): float(value) for key, value in manifest.get("thresholds", {}).items()},
            fingerprint=expected,
        )

    def save(self, folder: str | Path) -> Path:
        """Write the bundle; an existing one is replaced only after the new one is complete.

        Raises:
            InputError: The folder exists and is something else than a bundle, or cannot be written.
        """
        folder = Path(folder)
        if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
            raise InputError(f"{folder}: exists and is no bundle; choose another folder")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                # Copies, because safetensors refuses tensors that share memory (tied layers).
                state = self.network.state_dict()
                weights = {
                    key: value.cpu().clone(memory_format=torch.contiguous_format)
                    for key, value in state.items()
                }
                save_file(weights, fresh / WEIGHTS)
                (fresh / MANIFEST).write_text(json.dumps(self._manifest(), indent=2) + "\n", encoding="utf-8")
                fresh.chmod(0o755)
                if folder.exists():
                    retired = fresh.with_name(fresh.name + "-old")
                    folder.rename(retired)
                    fresh.rename(folder)
                    shutil.rmtree(retired)
                else:
                    fresh.rename(folder)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from error
        return folder

    def update(
        self,
        folder: str | Path,
        *,
        info: Mapping[str, Any] | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        """Add to the description of a saved bundle: metrics after an evaluation, calibrated thresholds.

        The weights and the fingerprint stay as they are.
        """
        self.info.update(info or {})
        self.thresholds.update(thresholds or {})
        folder = Path(folder)
        if _read_manifest(folder)["fingerprint"] != self.fingerprint:
            raise InputError(f"{folder}: holds another model than the one that was measured")
        fresh = folder / (MANIFEST + ".tmp")
        fresh.write_text(json.dumps(self._manifest(), indent=2) + "\n", encoding="utf-8")
        fresh.replace(folder / MANIFEST)

    def _manifest(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "architecture": self.architecture.to_dict(),
            "preprocess": self.preprocess.to_dict(),
            "fingerprint": self.fingerprint,
            "dim": self.dim,
            "info": self.info,
            "thresholds": self.thresholds,
        }

    @torch.inference_mode()
    def embed_tensor(self, batch: Tensor) -> Tensor:
        """Embed preprocessed images.

        Args:
            batch: float32 (B, C, H, W), on any device.

        Returns:
            Unit vectors, float32 (B, dim), on the network's device.
        """
        vectors: Tensor = self.network(batch.to(self.device, non_blocking=True))
        return vectors.float()

    def embed_each(
        self, images: Iterable[ImageSource], batch_size: int = 64, decoders: int = 2
    ) -> Iterator[NDArray[np.float32] | ImageError]:
        """Embed a stream, one result an image, in order; a broken image gives its error in its place.

        Decoding runs in threads ahead of the network, and no more than a few batches are in memory.

        Args:
            images: Encoded bytes, paths of files or Pillow images.
            batch_size: Images a forward pass.
            decoders: Decoding threads.
        """

        def decode(source: ImageSource) -> Tensor | ImageError:
            try:
                return self.preprocess(Path(source) if isinstance(source, str) else source)
            except ImageError as error:
                return error

        stream = iter(images)
        with ThreadPoolExecutor(decoders) as pool:
            ahead = [pool.submit(decode, source) for source in islice(stream, batch_size)]
            while ahead:
                inputs = [future.result() for future in ahead]
                ahead = [pool.submit(decode, source) for source in islice(stream, batch_size)]
                good = [item for item in inputs if isinstance(item, Tensor)]
                vectors = iter(self.embed_tensor(torch.stack(good)).cpu().numpy() if good else ())
                for item in inputs:
                    yield next(vectors) if isinstance(item, Tensor) else item

    def embed(self, images: Iterable[ImageSource], batch_size: int = 64) -> NDArray[np.float32]:
        """Embed images.

        Returns:
            Unit vectors, float32 (N, dim).

        Raises:
            ImageError: An image is unusable; the message says which.
        """
        vectors = []
        for position, vector in enumerate(self.embed_each(images, batch_size)):
            if isinstance(vector, ImageError):
                raise ImageError(f"image {position}: {vector}")
            vectors.append(vector)
        return np.stack(vectors) if vectors else np.empty((0, self.dim), np.float32)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} is not usable ({reason}); try cpu") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder}: no bundle here ({MANIFEST} is missing); kindred export makes one")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); export the bundle again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise InputError(f"{path}: format {found}, this program reads {FORMAT}; export the bundle again")
    return manifest


def _fingerprint(weights: Mapping[str, Tensor], architecture: Architecture, preprocess: Preprocess) -> str:
    """SHA-256 over everything that decides what an image's embedding is, as 16 hexadecimal digits.

    Decode limits decide what is refused, not what it embeds to, so they stay out.
    """
    settings = {"architecture": architecture.to_dict(), "preprocess": preprocess.to_dict()}
    settings["preprocess"].pop("limits")
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key in sorted(weights):
        tensor = weights[key].detach().cpu().contiguous()
        digest.update(f"{key}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
