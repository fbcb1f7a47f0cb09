"""The images that an export is checked with, and those that an int8 model is calibrated on."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.sources import open_source
from data.splits import select
from models.bundle import Bundle
from models.errors import InputError
from models.inference import sample_pixels
from models.preprocess import ImageError


@dataclass(frozen=True)
class Pixels:
    """Decoded and resized images.

    Attributes:
        values: uint8 (N, C, H, W).
        source: what they are, for the bundle's description.
    """

    values: Tensor
    source: str


def pixels_of(bundle: Bundle, data: str | None, part: str, count: int, seed: int) -> Pixels:
    """A random sample of the images of a part of the data, split as for the model's training.

    Args:
        bundle: whose preprocessing they go through.
        data: see `data.sources.open_source`; None makes images of random numbers.
        part: "train", "val", "test" or "all".
        count: how many at most.
        seed: of the sample.

    Raises:
        InputError: the data have no such part, or none of the images can be read.
    """
    preprocess = bundle.preprocess
    if data is None:
        values = sample_pixels(preprocess.shape, count, seed)
        return Pixels(values, "random numbers")
    table = open_source(data).table()
    chosen, _ = select(table, part, bundle.info.get("split"))
    rows = np.random.default_rng(seed).permutation(chosen)
    found: list[Tensor] = []
    for row in rows.tolist():
        if len(found) == count:
            break
        try:
            found.append(preprocess.tensor(preprocess.open(table.read(row))))
        except ImageError:
            continue
    if not found:
        raise InputError(f"{data}: has no readable {part} images")
    return Pixels(torch.stack(found), f"{table_name(data)}, {part}")


def table_name(data: str) -> str:
    """What the data are called without the folders above them."""
    return data.rstrip("/").rsplit("/", 1)[-1]
