"""Render the report as HTML."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import app.reports.findings as findings
from app.evaluation.evaluation import Evaluation
from app.reports.charts import bar_chart
from app.reports.curves import depth_curves, similarity_histogram, verification_curves
from app.reports.projection import projection_map
from app.reports.thumbnails import Thumbnails

HERE = Path(__file__).parent
WORST_CLASSES = 20
CLASS_BINS = 20


def write_report(path: Path, evaluation: Evaluation, results: dict[str, Any]) -> None:
    """Write the evaluation as one HTML file that refers to no other file or host.

    Args:
        path: the HTML file.
        evaluation: the results.
        results: the same as `as_json` returns it, with `pairs` and `index` if they were measured.
    """
    path.write_text(render(evaluation, results), encoding="utf-8")


def render(evaluation: Evaluation, results: dict[str, Any]) -> str:
    """The report's HTML."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    items, first = evaluation.items, evaluation.models[0]
    thumbnails = Thumbnails(items)
    seed = evaluation.options.seed
    embedding_map, method = projection_map(first, items, thumbnails.get, seed)
    labels, recalls, counts = findings.class_recalls(first, items)
    duplicate_count, duplicates = findings.near_duplicates(evaluation.models, items)
    return environment.get_template(
        "report.html"
    ).render(
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),  # noqa: S704 - a file of ours
        results=results,
        evaluation=evaluation,
        items=items,
        first=first,
        made=datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        picture=thumbnails.get,
        class_name=lambda row: items.class_names[int(items.labels[row])],
        names=[*(f"recall@{k}" for k in evaluation.options.ks), "map@r", "r_precision", "mrr"],
        pair_names=_pair_names(evaluation),
        depth_charts=depth_curves(evaluation.models),
        verification_charts=verification_curves(evaluation.models),
        histograms=[chart for model in evaluation.models if (chart := similarity_histogram(model))],
        embedding_map=embedding_map,
        map_method=method,
        successes=findings.successes(first, items, seed=seed),
        failures=findings.failures(first, items),
        confusions=findings.confusions(first, items),
        suspects=findings.suspects(first, items),
        duplicates=duplicates,
        duplicate_count=duplicate_count,
        slices=findings.slices(first, items),
        classes=[
            (items.class_names[label], recall, count)
            for label, recall, count in zip(labels[:WORST_CLASSES], recalls, counts, strict=False)
        ],
        class_chart=bar_chart(
            "Recall@1 of the classes",
            np.histogram(recalls, CLASS_BINS, (0, 1))[0].tolist(),
            "recall@1 of a class",
            "classes",
        ),
    )


def _pair_names(evaluation: Evaluation) -> list[str]:
    """Verification metrics that every model has."""
    wanted = [
        n for n in evaluation.models[0].metrics if n in ("auc", "eer", "d_prime") or n.startswith("tar@far=")
    ]
    return [name for name in wanted if all(name in model.metrics for model in evaluation.models)]
