"""An experiment's metrics as a Markdown table, with paired comparisons over seeds, and its curves."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from app.experiment.experiment_config import Comparison, Experiment

# They enclose the part of a page that the command writes.
_BEGIN, _END = "<!-- written by kindred experiment -->", "<!-- end -->"
_STYLES = ("-", "--", ":", "-.")
_COLOURS = 10
Metrics = dict[str, dict[int, dict[str, float]]]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% confidence interval, whose ends are infinite if the data do not bound it."""

    value: float
    low: float
    high: float
    seeds: int  # number of pairs; with one pair the ends are infinite


def paired_difference(one: Sequence[float], other: Sequence[float]) -> Interval:
    """Mean of one − other, values of two variants for the same seeds, with Student's t interval."""
    differences = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    mean, count = float(differences.mean()), len(differences)
    if count < 2:
        return Interval(mean, -math.inf, math.inf, count)
    half = _quantile(count) * float(differences.std(ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def recovered_fraction(better: Sequence[float], worse: Sequence[float], of: Sequence[float]) -> Interval:
    """(of − worse) / (better − worse) for the same seeds, as a ratio of means with Fieller's interval.

    The interval contains every fraction s for which of − worse − s (better − worse) does not differ from zero
    by the t test. It is unbounded if the loss itself does not differ from zero. Source: Fieller, J. R. Stat.
    Soc. B 16 (1954) 175.
    """
    reached, best, low = (np.asarray(v, dtype=np.float64) for v in (of, better, worse))
    gain, loss = reached - low, best - low
    count = len(gain)
    if not loss.mean():
        return Interval(math.nan, -math.inf, math.inf, count)
    fraction = float(gain.mean() / loss.mean())
    if count < 2:
        return Interval(fraction, -math.inf, math.inf, count)
    covariance = np.cov(gain, loss, ddof=1) * _quantile(count) ** 2 / count
    a = loss.mean() ** 2 - covariance[1, 1]
    b = gain.mean() * loss.mean() - covariance[0, 1]
    c = gain.mean() ** 2 - covariance[0, 0]
    root = b * b - a * c
    if a <= 0 or root < 0:
        return Interval(fraction, -math.inf, math.inf, count)
    return Interval(fraction, float((b - math.sqrt(root)) / a), float((b + math.sqrt(root)) / a), count)


def _quantile(count: int) -> float:
    return float(stats.t.ppf(0.975, count - 1))


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
    found = paired_difference(value, against)
    return Interval(100 * found.value, 100 * found.low, 100 * found.high, found.seeds), fraction


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


def draw_curves(experiment: Experiment, records: Iterable[dict[str, Any]], path: Path) -> None:
    """Plot the mean curve over seeds of each primary variant, with the range of seeds shaded.

    Without primary variants, all are drawn; of several metrics in a record's ``curve``, the first. Nothing is
    drawn if no curve has three points.
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
