"""Embed images with all models in one pass; each file is read and decoded once."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.evaluation.baselines import HISTOGRAM_SIZE, centred, colour_histogram, raw_pixels
from app.evaluation.evaluated_models import EvaluatedModel
from app.evaluation.evaluation_set import EvaluationSet
from models.errors import InputError
from models.preprocess import DecodeLimits, EncodedImage, ImageError, Preprocess, decode_image

BATCH_SIZE = 64
DECODERS = 2  # threads
LIMITS = DecodeLimits()

Vectors = NDArray[np.float32]
# One image: its raw pixels, its colour histogram, and one network input for each preprocessing.
Decoded = tuple[Vectors, Vectors, list[Tensor]]


def embed_images(
    items: EvaluationSet, models: Sequence[EvaluatedModel], advance: Callable[[], None]
) -> tuple[list[EvaluatedModel], NDArray[np.bool_], list[str]]:
    """Embed every readable image with every network, as raw pixels and as colour histogram.

    Only a few batches of images are in memory. Sets `vectors` of the models that have a bundle, and calls
    `advance` once for each image.

    Returns:
        The two baselines over the readable images; bool (N,), true for readable images; and an error message
        for each other image.

    Raises:
        InputError: no image can be read.
    """
    networks = [(model.bundle, model) for model in models if model.bundle is not None]
    preprocesses = list(dict.fromkeys(bundle.preprocess for bundle, _ in networks))
    vectors: list[list[Vectors]] = [[] for _ in networks]
    pixels, histograms, broken = [], [], []
    good = np.ones(len(items.labels), dtype=bool)
    batch: list[list[Tensor]] = []

    def embed() -> None:
        stacked = [torch.stack(inputs) for inputs in zip(*batch, strict=True)]
        for (bundle, _), found in zip(networks, vectors, strict=True):
            inputs = stacked[preprocesses.index(bundle.preprocess)]
            found.append(bundle.embed_pixels(inputs).cpu().numpy())
        batch.clear()

    for row, image in enumerate(_decoded(items, preprocesses)):
        if isinstance(image, ImageError):
            good[row] = False
            name = items.images.name(row)
            broken.append(str(image) if name in str(image) else f"{name}: {image}")
        else:
            pixels.append(image[0])
            histograms.append(image[1])
            batch.append(image[2])
            if len(batch) == BATCH_SIZE:
                embed()
        advance()
    if not pixels:
        raise InputError(f"{items.source}: none of the {len(good)} images can be read; {broken[0]}")
    if batch:
        embed()
    for (_, model), found in zip(networks, vectors, strict=True):
        model.vectors = np.concatenate(found)
    centred_pixels, colours = centred(np.stack(pixels)), np.stack(histograms)
    baselines = [
        EvaluatedModel("raw pixels", baseline=True, about={"size": 28}, vectors=centred_pixels),
        EvaluatedModel("colour histogram", baseline=True, about={"bins": 256}, vectors=colours),
    ]
    return baselines, good, broken


def _decoded(items: EvaluationSet, preprocesses: Sequence[Preprocess]) -> Iterator[Decoded | ImageError]:
    """Each image decoded, in order, or its error; threads work one batch ahead."""

    def decode(row: int) -> Decoded | ImageError:
        try:
            content = EncodedImage(items.images.read(row))
            image = decode_image(
                content, "RGB", LIMITS, at_least=HISTOGRAM_SIZE, white_level=items.white_level
            )
            inputs = [preprocess.tensor(preprocess.open(content)) for preprocess in preprocesses]
            return raw_pixels(image), colour_histogram(image), inputs
        except ImageError as error:
            return error

    rows = iter(range(len(items.labels)))
    with ThreadPoolExecutor(DECODERS) as pool:
        ahead = [pool.submit(decode, row) for row in islice(rows, BATCH_SIZE)]
        while ahead:
            images = [future.result() for future in ahead]
            ahead = [pool.submit(decode, row) for row in islice(rows, BATCH_SIZE)]
            yield from images
