"""What a figure must beat: embeddings that need no training. A recall means little without them."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.bundle import Bundle
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import DecodeLimits, ImageError, Preprocess, decode_image

PIXELS = 28
LIMITS = DecodeLimits()
HISTOGRAM_SIZE = 64
HUES, SATURATIONS, VALUES = 16, 4, 4

Vectors = NDArray[np.float32]


def raw_pixels(image: Image.Image) -> Vectors:
    """Colour values of a 28×28 copy, float32 (2352,) in [0, 1]; centre them over the set before comparing."""
    small = image.convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).ravel() / np.float32(255)


def colour_histogram(image: Image.Image) -> Vectors:
    """Joint histogram of hue, saturation and value, float32 (256,); square roots, so that cosine compares
    distributions (Bhattacharyya).
    """
    small = image.convert("RGB")
    small.thumbnail((HISTOGRAM_SIZE, HISTOGRAM_SIZE))
    hsv = np.asarray(small.convert("HSV"), dtype=np.int64).reshape(-1, 3)
    bins = (hsv[:, 0] * HUES // 256 * SATURATIONS + hsv[:, 1] * SATURATIONS // 256) * VALUES + hsv[
        :, 2
    ] * VALUES // 256
    counts = np.bincount(bins, minlength=HUES * SATURATIONS * VALUES)
    shares: Vectors = np.sqrt(counts / counts.sum()).astype(np.float32)
    return shares


def centred(pixels: Vectors) -> Vectors:
    """Rows of (N, dim) less the mean of all rows, without which every pair of photos looks alike."""
    mean: Vectors = pixels.mean(axis=0, dtype=np.float64).astype(np.float32)
    return pixels - mean


def untrained(architecture: Architecture, preprocess: Preprocess, seed: int = 0) -> Bundle:
    """A network of the same architecture with random weights; the caller's random state is left alone."""
    # The weights are drawn on the CPU: the generators of other devices are not asked.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Bundle(EmbeddingNetwork(architecture, trust_code=True), architecture, preprocess)


def describe_images(
    images: Iterator[bytes | ImageError], white_level: int
) -> Iterator[tuple[Vectors, Vectors] | ImageError]:
    """Pixels and histogram of each image; a broken image gives its error in its place."""
    for content in images:
        if isinstance(content, ImageError):
            yield content
            continue
        try:
            image = decode_image(content, "RGB", LIMITS, at_least=HISTOGRAM_SIZE, white_level=white_level)
        except ImageError as error:
            yield error
            continue
        yield raw_pixels(image), colour_histogram(image)
