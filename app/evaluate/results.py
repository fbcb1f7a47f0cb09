"""Writes an evaluation as JSON and CSV, under the same names as every table and log."""

import csv
import json
import math
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from app.evaluate.measure import Measured
from app.evaluate.run import Evaluation

PACKAGES = ("kindred", "torch", "torchvision", "numpy", "faiss-cpu", "faiss-gpu")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def as_json(evaluation: Evaluation, command: str) -> dict[str, Any]:
    """Everything but the vectors, as plain JSON values."""
    images, subject = evaluation.images, evaluation.subject
    return {
        "command": command,
        "versions": versions(),
        "seed": evaluation.options.seed,
        "data": {
            "source": images.source if images else None,
            "split": images.split if images else None,
            "split_hash": images.split_hash if images else None,
            "items": len(subject.labels),
            "classes": len(np.unique(subject.labels)),
            "broken": evaluation.broken,
            "duplicates": asdict(evaluation.duplicates) if evaluation.duplicates else None,
        },
        "notes": evaluation.notes,
        "models": [_model(model) for model in evaluation.models],
    }


def _model(model: Measured) -> dict[str, Any]:
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
    """JSON knows no infinities."""
    return value if math.isfinite(value) else None


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Writes results as indented JSON."""
    path.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_model_csv(path: Path, evaluation: Evaluation) -> None:
    """One row for each model: every metric, and intervals in columns `<metric>_low` and `<metric>_high`."""
    names = list(dict.fromkeys(name for model in evaluation.models for name in model.metrics))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        ends = [f"{name}_{end}" for name in evaluation.models[0].intervals for end in ("low", "high")]
        writer.writerow(["model", *names, *ends])
        for model in evaluation.models:
            bounds = [end for name in evaluation.models[0].intervals for end in model.intervals[name]]
            writer.writerow([model.name, *(model.metrics.get(name, "") for name in names), *bounds])


def write_class_csv(path: Path, evaluation: Evaluation) -> None:
    """One row for each class: its queries, and recall@1 and MAP@R of every model."""
    subject = evaluation.subject
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        metrics = ("recall@1", "map@r")
        writer.writerow(
            ["class", "queries", *(f"{m.name} {name}" for m in evaluation.models for name in metrics)]
        )
        size = len(subject.class_names)
        labels = subject.labels[evaluation.models[0].query_rows]
        counts = np.bincount(labels, minlength=size)
        sums = [
            np.bincount(labels, weights=model.retrieval.values[name].numpy(), minlength=size)
            for model in evaluation.models
            for name in metrics
        ]
        for label in np.flatnonzero(counts):
            means = [f"{total[label] / counts[label]:.6f}" for total in sums]
            writer.writerow([subject.class_names[label], counts[label], *means])
