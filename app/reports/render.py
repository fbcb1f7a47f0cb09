"""Render the report as HTML."""

import base64
import datetime
import io
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

import app.reports.findings as findings
from app.evaluation.evaluation import Evaluation
from app.evaluation.evaluation_set import EvaluationSet
from app.reports.charts import bar_chart
from app.reports.curves import depth_curves, similarity_histogram, verification_curves
from app.reports.projection import projection_map
from models.preprocess import ImageError, decode_image

HERE = Path(__file__).parent
WORST_CLASSES = 20
CLASS_BINS = 20
THUMBNAIL = 64  # pixels


def write_report(path: Path, evaluation: Evaluation, results: dict[str, Any]) -> None:
    """Write the evaluation as one HTML file that refers to no other file or host.

    ``results`` are the same as `as_json` returns it, with `pairs` and `index` if they were measured.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    items, first = evaluation.items, evaluation.models[0]
    thumbnail = cache(partial(_thumbnail, items))
    seed = evaluation.options.seed
    embedding_map, method = projection_map(first, items, thumbnail, seed)
    labels, recalls, counts = findings.class_recalls(first, items)
    duplicate_count, duplicates = findings.near_duplicates(evaluation.models, items)
    template = environment.get_template("report.html")
    page = template.render(
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),  # noqa: S704 - a file of ours
        results=results,
        evaluation=evaluation,
        items=items,
        first=first,
        made=datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        picture=thumbnail,
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
    path.write_text(page, encoding="utf-8")


def _pair_names(evaluation: Evaluation) -> list[str]:
    """Verification metrics that every model has."""
    wanted = [
        n for n in evaluation.models[0].metrics if n in ("auc", "eer", "d_prime") or n.startswith("tar@far=")
    ]
    return [name for name in wanted if all(name in model.metrics for model in evaluation.models)]


def _thumbnail(items: EvaluationSet, row: int) -> str | None:
    """A JPEG of at most 64 pixels a side as `data:` URI; None without a readable image."""
    table, white_level = items.table, items.white_level
    if table is None:
        return None
    try:
        image = decode_image(
            table.read(row), "RGB", table.limits, at_least=THUMBNAIL, white_level=white_level
        )
    except ImageError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
