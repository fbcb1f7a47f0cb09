"""The curves of the report."""

import math

import numpy as np
from markupsafe import Markup

from app.evaluation.evaluated_models import EvaluatedModel
from app.evaluation.measure import CURVE_KS
from app.reports.charts import Axis, Series, histogram_chart, line_chart
from models.metrics.verification import Roc

POINTS = 200
LEAST, MOST = 0.0005, 0.95  # ends of the DET axes
TENTHS = [0, 0.2, 0.4, 0.6, 0.8, 1]
BARS = 80


def depth_curves(models: list[EvaluatedModel]) -> list[Markup]:
    """Recall@k and precision@k against k."""
    charts = []
    for name in ("recall", "precision"):
        x = Axis("k", CURVE_KS[0], CURVE_KS[-1], CURVE_KS, "log2")
        series = [
            Series(m.name, CURVE_KS, [m.metrics[f"{name}@{k}"] for k in CURVE_KS], m.baseline) for m in models
        ]
        charts.append(line_chart(f"{name.capitalize()}@k", series, x, Axis(f"{name}@k", 0, 1, TENTHS)))
    return charts


def verification_curves(models: list[EvaluatedModel]) -> list[Markup]:
    """ROC with logarithmic false accepts, and DET on normal-deviate axes."""
    rocs = [(model, model.pairs.roc()) for model in models if model.pairs is not None]
    if not rocs:
        return []
    fewest = min(roc.different for _, roc in rocs)
    lowest = min(-1, max(-6, math.ceil(math.log10(1 / fewest))))
    ticks = [10.0**power for power in range(lowest, 1)]
    roc_series, det_series = [], []
    for model, roc in rocs:
        fars, tars = _sampled(roc, 10.0**lowest)
        roc_series.append(Series(model.name, fars, tars, model.baseline))
        inside = [(far, 1 - tar) for far, tar in zip(fars, tars, strict=True) if LEAST < far < MOST]
        det_series.append(
            Series(model.name, [far for far, _ in inside], [frr for _, frr in inside], model.baseline)
        )
    rate = [0.001, 0.01, 0.05, 0.2, 0.5, 0.9]
    return [
        line_chart(
            "ROC over all pairs",
            roc_series,
            Axis("false accept rate", ticks[0], 1, ticks, "log"),
            Axis("true accept rate", 0, 1, TENTHS),
        ),
        line_chart(
            "DET over all pairs",
            det_series,
            Axis("false accept rate", LEAST, MOST, rate, "deviate"),
            Axis("false reject rate", LEAST, MOST, rate, "deviate"),
        ),
    ]


def similarity_histogram(model: EvaluatedModel) -> Markup | None:
    """Similarities of same and of different pairs."""
    if model.pairs is None:
        return None
    same, different = model.pairs.same, model.pairs.different
    used = np.flatnonzero(same + different)
    bins = np.linspace(used[0], used[-1] + 1, BARS + 1).astype(int)
    edges = np.linspace(-1, 1, len(same) + 1)[bins]
    grouped = [np.add.reduceat(counts, bins[:-1])[:BARS].tolist() for counts in (same, different)]
    return histogram_chart(
        f"Similarities, {model.name}",
        edges.tolist(),
        [("same class", grouped[0]), ("different classes", grouped[1])],
        "cosine similarity",
    )


def _sampled(roc: Roc, lowest: float) -> tuple[list[float], list[float]]:
    """The curve at evenly spaced logarithms of the false accept rate."""
    fars = np.geomspace(lowest, 1, POINTS)
    at = np.searchsorted(roc.far, fars * (1 + 1e-12), side="right") - 1
    return fars.tolist(), roc.tar[at].tolist()
