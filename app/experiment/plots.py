"""Plot the curves of an experiment."""

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from app.experiment.experiment_config import Experiment

_STYLES = ("-", "--", ":", "-.")
_COLOURS = 10


def draw_curves(experiment: Experiment, records: Iterable[dict[str, Any]], path: Path) -> None:
    """Plot the mean curve over seeds of each primary variant, with the range of seeds shaded.

    Without primary variants, all are drawn. Nothing is drawn if no curve has three points.

    Args:
        experiment: title and order of variants.
        records: of its runs, each with a ``curve``: points with ``step`` and metrics, of which the first is
            drawn.
        path: the PNG file.
    """
    curves: dict[str, list[list[dict[str, float]]]] = {}
    shown = set(experiment.primary or experiment.variants)
    for record in (r for r in records if r["variant"] in shown):
        curves.setdefault(record["variant"], []).append(record["curve"])
    if max((len(run) for runs in curves.values() for run in runs), default=0) < 3:
        return
    measure = next((key for runs in curves.values() for key in runs[0][0] if key != "step"), "accuracy")
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        # High enough for a legend with one line for each variant.
        figure = Figure(figsize=(9, max(4.6, 0.2 * len(curves))), layout="constrained")
        axes = figure.subplots()
        for number, variant in enumerate(v for v in experiment.variants if v in curves):
            length = min(map(len, curves[variant]))
            steps = [point["step"] for point in curves[variant][0][:length]]
            values = np.array([[point[measure] for point in run[:length]] for run in curves[variant]])
            colour, style = f"C{number % _COLOURS}", _STYLES[number // _COLOURS % len(_STYLES)]
            axes.plot(steps, values.mean(0), style, color=colour, label=variant, marker=".")
            if len(values) > 1:
                axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
        axes.set(xlabel="steps", ylabel=f"validation {measure}")
        axes.set_title(textwrap.fill(experiment.title, 80), loc="left")
        axes.grid(alpha=0.25)
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside right upper", frameon=False)
        figure.savefig(path, dpi=110)
