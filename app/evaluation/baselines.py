"""Baselines that need no training: pixels, colours, untrained and pretrained networks."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from app.evaluation.evaluated_models import EvaluatedModel
from models.bundle import Bundle, usable_device
from models.errors import InputError
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess
from models.pretrained import pretrained_bundle

# Names of baselines in results.
UNTRAINED, PRETRAINED = "untrained", "pretrained, not trained"

PIXELS = 28
HISTOGRAM_SIZE = 64
HUES, SATURATIONS, VALUES = 16, 4, 4

Vectors = NDArray[np.float32]


def raw_pixels(image: Image.Image) -> Vectors:
    """RGB values of a 28×28 copy, float32 (2352,) in [0, 1]; subtract the set's mean before comparing."""
    small = image.convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).ravel() / np.float32(255)


def colour_histogram(image: Image.Image) -> Vectors:
    """Square roots of a joint histogram of hue, saturation and value, float32 (256,) of unit length.

    The cosine of two is the Bhattacharyya coefficient of the histograms.
    """
    small = image.convert("RGB")
    small.thumbnail((HISTOGRAM_SIZE, HISTOGRAM_SIZE))
    hsv = np.asarray(small.convert("HSV"), dtype=np.int64).reshape(-1, 3)
    bins = (hsv[:, 0] * HUES // 256 * SATURATIONS + hsv[:, 1] * SATURATIONS // 256) * VALUES + hsv[
        :, 2
    ] * VALUES // 256
    counts = np.bincount(bins, minlength=HUES * SATURATIONS * VALUES)
    roots: Vectors = np.sqrt(counts / counts.sum()).astype(np.float32)
    return roots


def centred(pixels: Vectors) -> Vectors:
    """Subtract the mean row of (N, dim); otherwise all pairs of photos have a cosine near 1."""
    mean: Vectors = pixels.mean(axis=0, dtype=np.float64).astype(np.float32)
    return pixels - mean


def untrained_twins(bundles: Sequence[Bundle], seed: int, device: str = "auto") -> list[EvaluatedModel]:
    """One network with random weights for each architecture of the bundles, on the bundle's device.

    Without bundles: one of the default architecture on ``device``. The global random state is not changed.
    """
    given = [(bundle.architecture, bundle.preprocess, bundle.device) for bundle in bundles]
    twins: list[EvaluatedModel] = []
    drawn: list[Architecture] = []
    for architecture, preprocess, place in given or [(Architecture(), Preprocess(), usable_device(device))]:
        if architecture in drawn:
            continue
        # Weights are drawn on the CPU, so the generators of other devices need no saving.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            twin = Bundle(EmbeddingNetwork(architecture, trust_code=True), architecture, preprocess)
        twin.network.to(place)
        name = f"{UNTRAINED} ({architecture.backbone})" if drawn else UNTRAINED
        twins.append(EvaluatedModel(name, twin, baseline=True))
        drawn.append(architecture)
    return twins


def pretrained_twins(bundles: Sequence[Bundle]) -> tuple[list[EvaluatedModel], list[str]]:
    """The pretrained networks that the bundles were fine-tuned from, without those among the bundles.

    Returns:
        The networks, and a note for each whose weights cannot be loaded any more.
    """
    twins: list[EvaluatedModel] = []
    notes: dict[str, None] = {}
    known = {bundle.fingerprint for bundle in bundles}
    for bundle in bundles:
        weights, architecture = bundle.info.get("weights"), bundle.architecture
        if weights is None:
            continue
        try:
            twin = pretrained_bundle(
                architecture.backbone,
                weights,
                backbone_args=architecture.backbone_args,
                preprocess=bundle.preprocess,
                trust_code=True,  # the bundle's own backbone, which was built already
            )
        except InputError as error:
            notes[f"No baseline of the pretrained network: {error}."] = None
            continue
        if twin.fingerprint not in known:
            known.add(twin.fingerprint)
            twin.network.to(bundle.device)
            name = f"{PRETRAINED} ({architecture.backbone})" if twins else PRETRAINED
            twins.append(EvaluatedModel(name, twin, baseline=True))
    return twins, list(notes)
