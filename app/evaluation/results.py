"""An evaluation as JSON, CSV and terminal tables."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from app.evaluation.evaluated_models import EvaluatedModel
from app.evaluation.evaluation import Evaluation
from models.inference import versions

PACKAGES = ("kindred", "torch", "torchvision", "numpy", "faiss-cpu", "faiss-gpu")


def as_json(evaluation: Evaluation, command: str) -> dict[str, Any]:
    """All results except the vectors, as plain JSON values."""
    items = evaluation.items
    return {
        "command": command,
        "versions": versions(*PACKAGES),
        "seed": evaluation.options.seed,
        "data": {
            "source": items.source,
            "split": items.split,
            "split_hash": items.split_hash,
            "items": len(items.labels),
            "classes": len(np.unique(items.labels)),
            "broken": evaluation.broken,
            "duplicates": asdict(evaluation.duplicates) if evaluation.duplicates else None,
        },
        "notes": evaluation.notes,
        "models": [_model(model) for model in evaluation.models],
    }


def _model(model: EvaluatedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "baseline": model.baseline,
        "about": model.about,
        "metrics": {name: _finite(value) for name, value in model.metrics.items()},
        "intervals_95": {name: list(interval) for name, interval in model.intervals.items()},
        "thresholds": [threshold.to_dict() for threshold in model.thresholds],
        "reranked": model.reranked,
    }


def _finite(value: float) -> float | None:
    """None instead of infinity and NaN, which JSON lacks."""
    return value if math.isfinite(value) else None


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Write results as indented JSON."""
    path.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_model_csv(path: Path, evaluation: Evaluation) -> None:
    """Write a row for each model: every metric, and intervals as `<metric>_low` and `<metric>_high`."""
    names = list(dict.fromkeys(name for model in evaluation.models for name in model.metrics))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        ends = [f"{name}_{end}" for name in evaluation.models[0].intervals for end in ("low", "high")]
        writer.writerow(["model", *names, *ends])
        for model in evaluation.models:
            bounds = [end for name in evaluation.models[0].intervals for end in model.intervals[name]]
            writer.writerow([model.name, *(model.metrics.get(name, "") for name in names), *bounds])


def write_class_csv(path: Path, evaluation: Evaluation) -> None:
    """Write a row for each class: its number of queries, and recall@1 and MAP@R of every model."""
    items = evaluation.items
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        metrics = ("recall@1", "map@r")
        writer.writerow(
            ["class", "queries", *(f"{m.name} {name}" for m in evaluation.models for name in metrics)]
        )
        size = len(items.class_names)
        labels = items.labels[evaluation.models[0].query_rows]
        counts = np.bincount(labels, minlength=size)
        sums = [
            np.bincount(labels, weights=model.retrieval.values[name].numpy(), minlength=size)
            for model in evaluation.models
            for name in metrics
        ]
        for label in np.flatnonzero(counts):
            means = [f"{total[label] / counts[label]:.6f}" for total in sums]
            writer.writerow([items.class_names[label], counts[label], *means])


def as_table(evaluation: Evaluation) -> Table:
    """Retrieval metrics, baselines first; recall@1 with its 95% interval."""
    names = [*(f"recall@{k}" for k in evaluation.options.ks), "map@r", "r_precision"]
    queries = evaluation.models[0].metrics["queries"]
    table = _empty_table(
        f"{queries:.0f} queries, exact search; intervals are 95% bootstrap over classes", names
    )
    for model in sorted(evaluation.models, key=lambda m: not m.baseline):
        first, *rest = (f"{model.metrics[name]:.3f}" for name in names)
        low, high = model.intervals[names[0]]
        interval = f"\n[dim]{low:.3f}–{high:.3f}[/dim]"
        table.add_row(model.name, first + interval, *rest, style=None if model.baseline else "bold")
        if model.reranked:
            table.add_row("  re-ranked", *(f"{model.reranked[name]:.3f}" for name in names), style="dim")
    return table


def as_few_shot_table(evaluation: Evaluation) -> Table:
    """Few-shot accuracies, baselines first, with their 95% intervals over episodes."""
    protocols = evaluation.options.few_shot
    title = f"{protocols[0].episodes} episodes; intervals are 95% over episodes of these classes"
    table = _empty_table(title, [protocol.name for protocol in protocols])
    for model in sorted(evaluation.models, key=lambda m: not m.baseline):
        cells = []
        for protocol in protocols:
            low, high = model.intervals[protocol.name]
            cells.append(f"{model.metrics[protocol.name]:.4f}\n[dim]{low:.4f}–{high:.4f}[/dim]")
        table.add_row(model.name, *cells, style=None if model.baseline else "bold")
    return table


def _empty_table(title: str, names: Sequence[str]) -> Table:
    """Without vertical lines, so that all columns fit a terminal of 80 characters."""
    table = Table("model", title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table
