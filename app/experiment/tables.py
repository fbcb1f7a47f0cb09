"""An experiment's figures as a Markdown table with the comparisons below it."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from app.experiment.intervals import Interval, paired_difference, recovered_share
from app.experiment.settings import Comparison, Experiment

Figures = dict[str, dict[int, dict[str, float]]]


def by_arm(records: Iterable[dict[str, Any]]) -> Figures:
    """Figures by arm, then seed."""
    figures: Figures = {}
    for record in records:
        figures.setdefault(record["arm"], {})[record["seed"]] = record["figures"]
    return figures


def draw_table(experiment: Experiment, name: str, figures: Figures) -> str:
    """The experiment's table: mean over seeds (± standard deviation) of every figure, then paired
    comparisons.
    """
    columns = sorted({key for runs in figures.values() for values in runs.values() for key in values})
    columns.sort(key=lambda key: (key != experiment.figure, key.startswith("loss"), key))
    lines = [
        f"# {name}",
        "",
        experiment.title,
        "",
        f"`kindred experiment {name}` made this file. Means over seeds, ± standard deviation of several.",
        "",
        "| " + " | ".join(["arm", "seeds", *columns]) + " |",
        "|" + " --- |" * (len(columns) + 2),
    ]
    for arm, runs in figures.items():
        cells = [_cell([values[key] for values in runs.values() if key in values]) for key in columns]
        lines.append("| " + " | ".join([arm, str(len(runs)), *cells]) + " |")
    if experiment.comparisons:
        intervals = "with 95% intervals (Student's t; Fieller's for shares)"
        lines += [
            "",
            f"Paired by seed, {experiment.figure}, in points (hundredths), {intervals}.",
            "",
            "| comparison | seeds | difference | share recovered |",
            "| --- | --- | --- | --- |",
        ]
        lines += [row for c in experiment.comparisons if (row := _row(c, experiment.figure, figures))]
    return "\n".join(lines) + "\n"


def compare(comparison: Comparison, figure: str, figures: Figures) -> tuple[Interval, Interval | None] | None:
    """The difference in points, and the share recovered; None where the arms have no seed in common."""
    names = [n for n in (comparison.arm, comparison.against, comparison.loss_from) if n is not None]
    seeds = sorted(set.intersection(*(set(figures.get(name, {})) for name in names)))
    if not seeds:
        return None
    values = {name: [figures[name][seed][figure] for seed in seeds] for name in names}
    arm, against = values[comparison.arm], values[comparison.against]
    share = None
    if comparison.loss_from is not None:
        share = recovered_share(values[comparison.loss_from], against, arm)
    return _points(paired_difference(arm, against)), share


def holds(comparison: Comparison, figure: str, figures: Figures) -> bool | None:
    """Whether what the documentation says of a comparison is true of these figures.

    None where it says nothing, or the runs are missing.
    """
    found = compare(comparison, figure, figures)
    said = (comparison.at_least, comparison.at_most, comparison.share_at_least)
    if found is None or all(bound is None for bound in said):
        return None
    difference, share = found
    return (
        (comparison.at_least is None or difference.value >= comparison.at_least)
        and (comparison.at_most is None or difference.value <= comparison.at_most)
        and (
            comparison.share_at_least is None
            or (share is not None and share.value >= comparison.share_at_least)
        )
    )


def _row(comparison: Comparison, figure: str, figures: Figures) -> str | None:
    found = compare(comparison, figure, figures)
    if found is None:
        return None
    difference, share = found
    shown = "" if share is None else _interval(share, "{:.0%}")
    return f"| {comparison.title} | {difference.seeds} | {_interval(difference, '{:+.1f}')} | {shown} |"


def _points(interval: Interval) -> Interval:
    return Interval(100 * interval.value, 100 * interval.low, 100 * interval.high, interval.seeds)


def _interval(interval: Interval, pattern: str) -> str:
    text = pattern.format(interval.value)
    if math.isinf(interval.low) or math.isinf(interval.high):
        return text if interval.seeds < 2 else f"{text} (unbounded)"
    return f"{text} [{pattern.format(interval.low)}, {pattern.format(interval.high)}]"


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
