"""An experiment's metrics as a Markdown table with the comparisons below it."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from app.experiment.experiment_config import Comparison, Experiment
from app.experiment.intervals import Interval, paired_difference, recovered_fraction

# They enclose the part of a page that the command writes.
_BEGIN, _END = "<!-- written by kindred experiment -->", "<!-- end -->"
Metrics = dict[str, dict[int, dict[str, float]]]


def by_variant(records: Iterable[dict[str, Any]]) -> Metrics:
    """Metrics by variant, then seed."""
    metrics: Metrics = {}
    for record in records:
        metrics.setdefault(record["variant"], {})[record["seed"]] = record["metrics"]
    return metrics


def draw_table(experiment: Experiment, metrics: Metrics) -> str:
    """The experiment's table: mean over seeds (± standard deviation) of every metric, then paired
    comparisons.
    """
    columns = sorted({key for runs in metrics.values() for values in runs.values() for key in values})
    columns.sort(key=lambda key: (key != experiment.metric, key.startswith("loss"), key))
    lines = [
        "Means over seeds, ± standard deviation of several.",
        "",
        "| " + " | ".join(["variant", "seeds", *columns]) + " |",
        "|" + " --- |" * (len(columns) + 2),
    ]
    for variant, runs in metrics.items():
        cells = [_cell([values[key] for values in runs.values() if key in values]) for key in columns]
        lines.append("| " + " | ".join([variant, str(len(runs)), *cells]) + " |")
    if experiment.comparisons:
        intervals = "with 95% intervals (Student's t; Fieller's for fractions)"
        lines += [
            "",
            f"Paired by seed, {experiment.metric}, in points (hundredths), {intervals}.",
            "",
            "| comparison | seeds | difference | fraction recovered |",
            "| --- | --- | --- | --- |",
        ]
        lines += [row for c in experiment.comparisons if (row := _row(c, experiment.metric, metrics))]
    return "\n".join(lines) + "\n"


def put_table(page: str | None, table: str, experiment: Experiment, name: str) -> str:
    """The page with its table replaced and all other text kept; a new page if ``page`` is None."""
    block = f"{_BEGIN}\n{table}{_END}"
    if page is None or _BEGIN not in page or _END not in page:
        title = f"# {name}\n\n{experiment.title}\n" if page is None else page
        return f"{title}\n{block}\n"
    return page[: page.index(_BEGIN)] + block + page[page.index(_END) + len(_END) :]


def compare(comparison: Comparison, metric: str, metrics: Metrics) -> tuple[Interval, Interval | None] | None:
    """The difference in points and the fraction recovered; None where the variants share no seed."""
    names = [n for n in (comparison.variant, comparison.against, comparison.loss_from) if n is not None]
    seeds = sorted(set.intersection(*(set(metrics.get(name, {})) for name in names)))
    if not seeds:
        return None
    values = {name: [metrics[name][seed][metric] for seed in seeds] for name in names}
    value, against = values[comparison.variant], values[comparison.against]
    fraction = None
    if comparison.loss_from is not None:
        fraction = recovered_fraction(values[comparison.loss_from], against, value)
    return _points(paired_difference(value, against)), fraction


def holds(comparison: Comparison, metric: str, metrics: Metrics) -> bool | None:
    """Whether the published conclusion of a comparison holds for these metrics.

    None if nothing is published, or runs are missing.
    """
    found = compare(comparison, metric, metrics)
    said = (comparison.at_least, comparison.at_most, comparison.fraction_at_least)
    if found is None or all(bound is None for bound in said):
        return None
    difference, fraction = found
    return (
        (comparison.at_least is None or difference.value >= comparison.at_least)
        and (comparison.at_most is None or difference.value <= comparison.at_most)
        and (
            comparison.fraction_at_least is None
            or (fraction is not None and fraction.value >= comparison.fraction_at_least)
        )
    )


def _row(comparison: Comparison, metric: str, metrics: Metrics) -> str | None:
    found = compare(comparison, metric, metrics)
    if found is None:
        return None
    difference, fraction = found
    shown = "" if fraction is None else _interval(fraction, "{:.0%}")
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
