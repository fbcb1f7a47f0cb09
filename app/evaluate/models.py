"""The models under evaluation: where they come from, and how they embed a set of images."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.baselines import centred, describe_images, untrained
from app.evaluate.images import ImageSet
from app.export import bundle_from_checkpoint
from models.bundle import Bundle, usable_device
from models.errors import InputError
from models.network import Architecture
from models.preprocess import ImageError, Preprocess
from models.pretrained import pretrained_bundle

Advance = Callable[[int], None]

# Rows of every evaluation beside the models.
UNTRAINED, PRETRAINED = "untrained", "pretrained, not trained"


@dataclass(frozen=True)
class Candidate:
    """A trained model.

    Attributes:
        name: what tables call it.
        model: ready to embed.
        folder: where its bundle lies, None for a checkpoint.
    """

    name: str
    model: Bundle
    folder: Path | None


@dataclass(frozen=True)
class Embedded:
    """One set of embeddings, aligned with the rows under evaluation.

    Attributes:
        name: what tables call it.
        vectors: float (N, dim).
        baseline: whether it only serves for comparison.
        about: plain JSON on its origin (fingerprint, file, dimension).
    """

    name: str
    vectors: NDArray[Any]
    baseline: bool
    about: dict[str, Any]


def load_candidates(
    bundles: Sequence[Path], checkpoints: Sequence[Path], device: str, trust_code: bool = False
) -> list[Candidate]:
    """Loads every model onto a device; names are those of the run's folders, numbered where they repeat.

    Raises:
        InputError: a bundle or checkpoint is missing or damaged, or the device cannot be used.
    """
    found = [_candidate(path, device, trust_code) for path in bundles]
    for path in checkpoints:
        model = bundle_from_checkpoint(path, trust_code=trust_code)
        model.network.to(usable_device(device))
        found.append(Candidate(_run_name(path), model, None))
    seen: dict[str, int] = {}
    named = []
    for candidate in found:
        seen[candidate.name] = seen.get(candidate.name, 0) + 1
        again = seen[candidate.name]
        name = candidate.name if again == 1 else f"{candidate.name} ({again})"
        named.append(Candidate(name, candidate.model, candidate.folder))
    return named


def _candidate(path: Path, device: str, trust_code: bool) -> Candidate:
    """Of a bundle, or of an ONNX file in one: figures of the file are not the bundle's own."""
    bundle = Bundle.load(path, device, trust_code=trust_code)
    return Candidate(_run_name(path), bundle, path if path.is_dir() else None)


def _run_name(path: Path) -> str:
    parts = [part for part in path.resolve().with_suffix("").parts if part not in ("bundle", "checkpoints")]
    return "/".join(parts[-2:]) if path.suffix in (".ckpt", ".onnx") else parts[-1]


def embed_candidate(candidate: Candidate, images: ImageSet, batch_size: int, advance: Advance) -> Embedded:
    """Embeds every image of a set that has been found readable.

    Raises:
        InputError: an image cannot be read after all.
    """
    vectors: list[NDArray[np.float32]] = []
    contents = (_content(item) for item in images.read_all())
    for vector in candidate.model.embed_each(contents, batch_size):
        if isinstance(vector, ImageError):
            raise InputError(f"{images.table.name(len(vectors))}: changed while it was read ({vector})")
        vectors.append(vector)
        advance(1)
    about = {"fingerprint": candidate.model.fingerprint, "dim": candidate.model.dim}
    return Embedded(candidate.name, np.stack(vectors), baseline=False, about=about)


def _content(item: bytes | ImageError) -> bytes:
    if isinstance(item, ImageError):
        raise InputError(str(item))
    return item


def image_baselines(
    images: ImageSet, advance: Advance
) -> tuple[list[Embedded], NDArray[np.bool_], list[str]]:
    """Raw pixels and colour histograms, which also finds out which images are usable.

    Returns:
        The two baselines over the usable images, bool (N,) of usable images, and a line for each other one.

    Raises:
        InputError: no image is usable.
    """
    pixels, histograms, broken = [], [], []
    good = np.ones(len(images.table), dtype=bool)
    for row, found in enumerate(describe_images(images.read_all(), images.white_level)):
        if isinstance(found, ImageError):
            good[row] = False
            name = images.table.name(row)
            broken.append(str(found) if name in str(found) else f"{name}: {found}")
        else:
            pixels.append(found[0])
            histograms.append(found[1])
        advance(1)
    if not pixels:
        raise InputError(f"{images.source}: none of the {len(good)} images can be read; {broken[0]}")
    baselines = [
        Embedded("raw pixels", centred(np.stack(pixels)), baseline=True, about={"size": 28}),
        Embedded("colour histogram", np.stack(histograms), baseline=True, about={"bins": 256}),
    ]
    return baselines, good, broken


def untrained_twins(candidates: Sequence[Candidate], seed: int, device: str = "auto") -> list[Candidate]:
    """A network with random weights for each architecture among the candidates, beside it on its device.

    Without candidates it is one of the default architecture, on the given device.
    """
    if not candidates:
        plain = untrained(Architecture(), Preprocess(), seed)
        plain.network.to(usable_device(device))
        return [Candidate(UNTRAINED, plain, None)]
    twins: list[Candidate] = []
    for architecture, group in itertools.groupby(candidates, key=lambda c: c.model.architecture):
        first = next(group).model
        if all(architecture != twin.model.architecture for twin in twins):
            twin = untrained(architecture, first.preprocess, seed)
            twin.network.to(first.device)
            name = UNTRAINED if not twins else f"{UNTRAINED} ({architecture.backbone})"
            twins.append(Candidate(name, twin, None))
    return twins


def pretrained_twins(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[str]]:
    """The networks that the candidates began from, as they are; none of a candidate that is one itself.

    Returns:
        The networks, and a note for each whose weights cannot be had any more.
    """
    twins: list[Candidate] = []
    notes: dict[str, None] = {}
    known = {candidate.model.fingerprint for candidate in candidates}
    for candidate in candidates:
        model = candidate.model
        weights, architecture = model.info.get("weights"), model.architecture
        if weights is None:
            continue
        try:
            twin = pretrained_bundle(
                architecture.backbone,
                weights,
                backbone_args=architecture.backbone_args,
                preprocess=model.preprocess,
                trust_code=True,  # the candidate's own backbone, which has been built already
            )
        except InputError as error:
            notes[f"No baseline of the pretrained network: {error}."] = None
            continue
        if twin.fingerprint in known:
            continue
        known.add(twin.fingerprint)
        twin.network.to(model.device)
        name = PRETRAINED
        twins.append(Candidate(f"{name} ({architecture.backbone})" if twins else name, twin, None))
    return twins, list(notes)
