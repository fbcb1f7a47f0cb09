"""Images for checking exports and for calibrating int8 models."""

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
    """Decoded and resized images."""

    values: Tensor  # uint8 (N, C, H, W)
    source: str  # what they are, for bundle.json


def pixels_of(bundle: Bundle, data: str | None, split: str, count: int, seed: int) -> Pixels:
    """A random sample of up to ``count`` images of a split, which is made as for the model's training.

    Without data, they are random numbers. The bundle's preprocessing is applied.

    Raises:
        InputError: the data have no such split, or none of its images can be read.
    """
    preprocess = bundle.preprocess
    if data is None:
        values = sample_pixels(preprocess.shape, count, seed)
        return Pixels(values, "random numbers")
    table = open_source(data).table()
    chosen, _ = select(table, split, bundle.info.get("split"))
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
        raise InputError(f"{data}: has no readable {split} images")
    name = data.rstrip("/").rsplit("/", 1)[-1]
    return Pixels(torch.stack(found), f"{name}, {split}")
