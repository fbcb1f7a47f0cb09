"""A two-dimensional map of the embeddings as inline SVG with thumbnails."""

from collections.abc import Callable

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from app.evaluation.evaluated_models import EvaluatedModel
from app.evaluation.evaluation_set import EvaluationSet

POINTS, PICTURES = 1500, 110
SIDE, MARGIN, PICTURE = 760, 20, 30
HUE_STEP = 137.5  # the golden angle: neighbouring labels get distant hues

Thumbnail = Callable[[int], str | None]


def project(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], str]:
    """Two principal components of vectors (N, dim), as (N, 2) within [0, 1], and the method's name."""
    centred = vectors - vectors.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    found = np.zeros((len(vectors), 2))
    found[:, : min(2, len(scale))] = (left * scale)[:, :2]
    fraction = float((scale[:2] ** 2).sum() / max((scale**2).sum(), 1e-300))
    low, high = np.quantile(found, 0.005, axis=0), np.quantile(found, 0.995, axis=0)
    places = np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1)
    return places, f"PCA, {fraction:.0%} of the variance"


def projection_map(
    model: EvaluatedModel, items: EvaluationSet, thumbnail: Thumbnail, seed: int
) -> tuple[Markup, str]:
    """The map of a sample of items; every class keeps one colour."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(items.labels))[:POINTS])
    vectors = np.asarray(model.vectors[rows], dtype=np.float32)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    places, method = project(vectors)
    places = MARGIN + places * (SIDE - 2 * MARGIN)
    parts = [f'<svg class="map" viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="Map of the embeddings">']
    for row, (x, y) in zip(rows, places, strict=True):
        label = int(items.labels[row])
        parts.append(
            f'<circle cx="{x:.0f}" cy="{y:.0f}" r="3.5" fill="{_colour(label)}">'
            f"<title>{escape(items.class_names[label])}</title></circle>"
        )
    for position in _spread(places):
        row = int(rows[position])
        picture = thumbnail(row)
        if picture is None:
            break
        (x, y), label = places[position] - PICTURE / 2, int(items.labels[row])
        box = f'x="{x:.0f}" y="{y:.0f}" width="{PICTURE}" height="{PICTURE}"'
        parts.append(
            f'<g><title>{escape(items.class_names[label])}</title><image href="{escape(picture)}" {box}/>'
            f'<rect {box} fill="none" stroke="{_colour(label)}" stroke-width="2"/></g>'
        )
    return Markup("".join(parts) + "</svg>"), method  # noqa: S704 - every text in it is escaped above


def _colour(label: int) -> str:
    return f"hsl({label * HUE_STEP % 360:.0f} 65% 52%)"


def _spread(places: NDArray[np.float64]) -> list[int]:
    """Positions of points that lie apart from each other, so that their pictures do not overlap."""
    chosen: list[int] = []
    for position, place in enumerate(places):
        if all(np.abs(place - places[other]).max() > PICTURE * 1.1 for other in chosen):
            chosen.append(position)
            if len(chosen) == PICTURES:
                break
    return chosen
