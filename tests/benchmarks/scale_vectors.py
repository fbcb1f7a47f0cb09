"""Made-up vectors with the structure of trained embeddings, for measuring how indexes grow.

Embeddings of images are no uniform noise, on which every approximate index looks bad, nor well separated
balls, on which every one looks good. Here, for N vectors of dimension d:

- N/20 classes in N/1000 groups of confusable classes; a class's centre is 0.6 of its group's direction and
  0.8 of its own, so two classes of a group have a cosine of 0.36 on average, others 0;
- classes of unequal size (weights log-normal, sigma 0.7), as catalogues have them;
- around its centre a class spreads by a Gaussian of length 0.6: two of its images have a cosine of 0.73;
- the variance along the i-th of d (randomly turned) axes falls as 1/(1 + i), as it does after training: of
  128 dimensions a few dozen carry most.

More vectors are more classes of the same size, so neighbours get harder to tell apart as a catalogue grows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PER_CLASS, PER_GROUP = 20, 1000
SPREAD, OF_GROUP, OF_CLASS = 0.6, 0.6, 0.8
BLOCK = 50_000
DEPTH = 10

Vectors = NDArray[np.float32]


class Mixture:
    """The mixture for so many items; the same seed gives the same one."""

    def __init__(self, items: int, dim: int, seed: int) -> None:
        rng = np.random.default_rng([seed, items, dim])
        self.dim, self.rng = dim, rng
        scale = (1 / np.sqrt(1 + np.arange(dim))).astype(np.float32)
        turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
        # A standard Gaussian times this has the falling variances and an expected square length of one.
        self.axes = scale[:, None] / np.linalg.norm(scale) * turn
        groups = _unit(self._gaussian(max(1, items // PER_GROUP)))
        classes = max(2, items // PER_CLASS)
        own = _unit(self._gaussian(classes))
        self.centres = _unit(OF_GROUP * groups[rng.integers(len(groups), size=classes)] + OF_CLASS * own)
        weights = rng.lognormal(0, 0.7, classes)
        self.weights = weights / weights.sum()

    def draw(self, count: int) -> Vectors:
        """(count, dim) float32 unit vectors."""
        drawn = np.empty((count, self.dim), np.float32)
        for start in range(0, count, BLOCK):
            part = drawn[start : start + BLOCK]
            kind = self.rng.choice(len(self.centres), size=len(part), p=self.weights)
            part[:] = _unit(self.centres[kind] + SPREAD * self._gaussian(len(part)))
        return drawn

    def _gaussian(self, count: int) -> Vectors:
        return self.rng.standard_normal((count, self.dim), dtype=np.float32) @ self.axes


def _unit(rows: Vectors) -> Vectors:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make(
    folder: Path, items: int, dim: int, queries: int, seed: int
) -> tuple[Vectors, Vectors, NDArray[np.int64]]:
    """Vectors (mapped), queries, and the rows of each query's exact neighbours; kept in `folder`."""
    paths = [folder / f"{name}.npy" for name in ("vectors", "queries", "truth")]
    if not paths[-1].is_file():
        folder.mkdir(parents=True, exist_ok=True)
        mixture = Mixture(items, dim, seed)
        gallery, asked = mixture.draw(items), mixture.draw(queries)
        for path, array in zip(paths, (gallery, asked, exact(gallery, asked)), strict=True):
            np.save(path, array)
    gallery, asked, truth = (np.load(path, mmap_mode="r") for path in paths)
    return gallery, np.asarray(asked), np.asarray(truth)


def exact(gallery: Vectors, queries: Vectors, depth: int = DEPTH) -> NDArray[np.int64]:
    """Rows of the `depth` most similar vectors of each query, int64 (Q, depth)."""
    best = np.full((len(queries), depth), -2, np.float32)
    rows = np.zeros((len(queries), depth), np.int64)
    for start in range(0, len(gallery), BLOCK):
        similarity = np.concatenate([best, queries @ gallery[start : start + BLOCK].T], axis=1)
        chosen = np.argpartition(-similarity, depth, axis=1)[:, :depth]
        known = np.concatenate(
            [rows, np.zeros((len(queries), similarity.shape[1] - depth), np.int64)], axis=1
        )
        known[:, depth:] = np.arange(start, start + similarity.shape[1] - depth)
        best, rows = (np.take_along_axis(table, chosen, axis=1) for table in (similarity, known))
    return rows
