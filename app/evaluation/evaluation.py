"""Run an evaluation: embed with every model and baseline, and measure each."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from app.evaluation.baselines import pretrained_twins, untrained_twins
from app.evaluation.duplicates import Duplicates, count_duplicates, first_copies, without_duplicates
from app.evaluation.embed_images import embed_images
from app.evaluation.embedding_files import SavedEmbeddings, load_labels
from app.evaluation.evaluated_models import EvaluatedModel
from app.evaluation.evaluation_set import EvaluationSet
from app.evaluation.measure import Options, measure
from app.progress import counting_progress
from data.seen_classes import seen_classes
from models.errors import InputError


@dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation."""

    models: list[EvaluatedModel]  # trained models first, baselines after them
    items: EvaluationSet
    options: Options
    broken: list[str] = field(default_factory=list)  # an error message for each skipped image
    notes: list[str] = field(default_factory=list)  # sentences for the reader
    duplicates: Duplicates | None = None  # None if only embeddings were given


def run_evaluation(
    models: Sequence[EvaluatedModel],
    items: EvaluationSet,
    *,
    options: Options | None = None,
    calibrated: bool = True,
    notes: Sequence[str] = (),
    console: Console | None = None,
) -> Evaluation:
    """Evaluate models on the same items and, if these are images, the baselines, too.

    Args:
        models: trained models and saved embeddings, of which each item has a row; empty for the baselines.
        items: what they are measured on.
        options: how to measure.
        calibrated: compute thresholds for the first model.
        notes: sentences for the reader; others are added.
        console: where progress is shown.

    Raises:
        InputError: the inputs do not fit together.
    """
    options = options or Options()
    baselines: list[EvaluatedModel] = []
    broken: list[str] = []
    found: list[str] = []
    duplicates: Duplicates | None = None
    for model in models:
        if model.bundle is None and len(model.vectors) != len(items.labels):
            raise InputError(
                f"{model.about.get('file', model.name)}: {len(model.vectors)} embeddings for "
                f"{len(items.labels)} {'labels' if items.table is None else 'images'}; rows must correspond"
            )
    with counting_progress(console=console or Console(stderr=True)) as progress:
        if items.table is not None:
            bundles = [model.bundle for model in models if model.bundle is not None]
            if bundles:
                items = replace(items, white_level=bundles[0].preprocess.white_level)
            items, kept, duplicates = _identical(items, drop=options.drop_duplicates)
            pretrained, found = pretrained_twins(bundles)
            twins = [*untrained_twins(bundles, options.seed, options.device), *pretrained]
            task = progress.add_task("embedding images", total=len(items.labels))
            floors, good, broken = embed_images(items, [*models, *twins], lambda: progress.advance(task))
            baselines = [*floors, *twins]
            items = items.keep(good)
            kept[kept] = good
            for model in models:
                if model.bundle is None:
                    model.vectors = model.vectors[kept]
        for position, model in enumerate([*models, *baselines]):
            task = progress.add_task(f"measuring {model.name}", total=None)
            first = calibrated and position == 0 and not model.baseline

            def moved(done: int, total: int, task: Any = task) -> None:
                progress.update(task, completed=done, total=total)

            measure(model, items, options, calibrated=first, progress=moved)
    every = [*models, *baselines]
    if duplicates is not None and duplicates.note:
        found.append(duplicates.note)
    found = [*notes, *found, *_notes(items, broken, every[0])]
    return Evaluation(every, items, options, broken, found, duplicates)


def items_of_embeddings(
    path: Path, saved: SavedEmbeddings, labels: Path | None = None, relevance: str | None = None
) -> EvaluationSet:
    """The items of saved embeddings without images; ``labels`` is a file of labels for those without any.

    Raises:
        InputError: labels are missing, there is not one for each embedding, or the column does not exist.
    """
    found = load_labels(labels) if labels is not None else saved.labels
    if found is None:
        raise InputError(f"{path}: holds no labels; give --labels FILE (or --data)")
    if found.ndim != 1 or len(found) != len(saved.vectors):
        raise InputError(f"{len(saved.vectors)} embeddings in {path}, but labels of shape {found.shape}")
    names, codes = np.unique(found, return_inverse=True)
    return EvaluationSet(
        codes.astype(np.int64), [str(name) for name in names], columns=saved.columns, relevance=relevance
    )


def seen_notes(models: Sequence[EvaluatedModel], items: EvaluationSet, *, allow: bool) -> list[str]:
    """Notes about classes of the items that a model was, or may have been, trained on.

    Raises:
        InputError: classes were seen in training, and `allow` is false.
    """
    names = [items.class_names[label] for label in np.unique(items.labels)]
    notes = []
    for model in models:
        if model.bundle is None:
            continue
        info, packed = model.bundle.info, model.bundle.training_classes
        same_split = items.split_hash is not None and items.split_hash == info.get("split_hash")
        if packed is None:
            if items.split_hash is not None and info.get("split_hash") not in (None, items.split_hash):
                notes.append(
                    f"{model.name} was trained on another split of the data than this one: "
                    "it may have seen the classes that it is tested on."
                )
            continue
        seen = seen_classes(packed, names)
        if not seen:
            continue
        told = f"{model.name} was trained on {len(seen)} of the {len(names)} classes to be tested"
        if same_split and items.split != "train" and (info.get("split") or {}).get("kind") == "per_image":
            notes.append(f"{told}, on other images of them: the metrics do not hold for new classes.")
        elif allow:
            notes.append(f"{told}: the metrics do not hold for new classes.")
        else:
            raise InputError(
                f"{told} (or on classes of the same names, {seen[0]!r} first): test on others "
                "(--split test of the data it was trained on), or give --allow-seen-classes"
            )
    return notes


def _identical(items: EvaluationSet, *, drop: bool) -> tuple[EvaluationSet, NDArray[np.bool_], Duplicates]:
    """The images to evaluate; bool (N,), true for the given ones that remain; and the duplicates."""
    first = first_copies(items)
    found = count_duplicates(items, first)
    if not drop:
        return items, np.ones(len(first), dtype=bool), found
    items, kept = without_duplicates(items, first)
    return items, kept, replace(found, dropped=int((~kept).sum()))


def _notes(items: EvaluationSet, broken: Sequence[str], first: EvaluatedModel) -> list[str]:
    notes = []
    if items.table is None:
        notes.append("No baselines: raw pixels and colour histograms need the images; add --data.")
    if broken:
        notes.append(f"{len(broken)} unreadable images were skipped.")
    if first.metrics["excluded_queries"]:
        notes.append(
            f"{first.metrics['excluded_queries']:.0f} queries have no match in the gallery and were left out."
        )
    if first.metrics["tied_queries"]:
        notes.append(
            f"{first.metrics['tied_queries']:.0f} queries have neighbours at exactly equal similarity; "
            "ties count against the model."
        )
    return notes
