"""Runs an evaluation: embeds with every model and baseline, measures each, keeps what a report shows."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.evaluate.duplicates import Duplicates, count_duplicates, first_copies, without_duplicates
from app.evaluate.embedding_files import SavedEmbeddings, load_embeddings, load_labels
from app.evaluate.images import ImageSet
from app.evaluate.measure import Measured, Options, Subject, measure
from app.evaluate.models import (
    Candidate,
    Embedded,
    embed_candidate,
    image_baselines,
    pretrained_twins,
    untrained_twins,
)
from models.errors import InputError

BATCH_SIZE = 64


@dataclass(frozen=True)
class Evaluation:
    """The outcome.

    Attributes:
        models: trained models first, baselines after them.
        subject: what they were measured on.
        images: the images, None where only embeddings were given.
        broken: a line for each image that was skipped.
        notes: what the reader must know, one sentence each.
        options: how it was measured.
        duplicates: byte-identical images, None where only embeddings were given.
    """

    models: list[Measured]
    subject: Subject
    images: ImageSet | None
    broken: list[str]
    options: Options
    notes: list[str] = field(default_factory=list)
    duplicates: Duplicates | None = None


def run_evaluation(
    candidates: Sequence[Candidate] = (),
    saved: Sequence[Path] = (),
    *,
    images: ImageSet | None = None,
    labels: Path | None = None,
    relevance: str | None = None,
    options: Options | None = None,
    calibrated: bool = True,
    notes: Sequence[str] = (),
    console: Console | None = None,
) -> Evaluation:
    """Evaluates models and saved embeddings side by side, on the same items; the baselines alone without any.

    Args:
        candidates: trained models; they need `images`.
        saved: files of embeddings, whose rows correspond to `images` where both are given.
        images: labelled images; also the source of the baselines.
        labels: file of labels for embeddings that carry none.
        relevance: metadata column with several labels an item, separated by ";": one in common is a match.
        options: how to measure.
        calibrated: find thresholds for the first model.
        notes: what the reader must know besides what is found out here.
        console: where progress is shown.

    Raises:
        InputError: nothing to evaluate, or inputs that do not fit together.
    """
    options = options or Options()
    if not candidates and not saved and images is None:
        raise InputError("nothing to evaluate: give --bundle, --checkpoint, --embeddings or --data")
    if candidates and images is None:
        raise InputError("a bundle or checkpoint needs images to embed: give --data")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console or Console(stderr=True)) as progress:
        broken: list[str] = []
        lacking: list[str] = []
        baselines: list[Embedded] = []
        kept: NDArray[np.bool_] | None = None
        duplicates: Duplicates | None = None
        if images is not None:
            if candidates:
                images = replace(images, white_level=candidates[0].model.preprocess.white_level)
            images, kept, duplicates = _identical(images, drop=options.drop_duplicates)
            task = progress.add_task("reading images", total=len(images.table))
            baselines, good, broken = image_baselines(images, lambda n: progress.advance(task, n))
            images = images.keep(good)
            kept[kept] = good
        files = [(path, load_embeddings(path)) for path in saved]
        embedded = [_embed(candidate, images, progress) for candidate in candidates if images is not None]
        embedded += [_from_file(path, file, kept) for path, file in files]
        if images is not None:
            pretrained, lacking = pretrained_twins(candidates)
            twins = [*untrained_twins(candidates, options.seed, options.device), *pretrained]
            baselines += [_as_baseline(_embed(twin, images, progress)) for twin in twins]
        subject = _subject(images, files, labels, relevance)
        models = []
        for position, item in enumerate([*embedded, *baselines]):
            task = progress.add_task(f"measuring {item.name}", total=None)
            first = calibrated and position == 0 and not item.baseline

            def moved(done: int, total: int, task: Any = task) -> None:
                progress.update(task, completed=done, total=total)

            models.append(measure(item, subject, options, calibrated=first, progress=moved))
    if duplicates is not None and duplicates.note:
        lacking.append(duplicates.note)
    found = [*notes, *lacking, *_notes(images, broken, models[0])]
    return Evaluation(models, subject, images, broken, options, found, duplicates)


def _identical(images: ImageSet, *, drop: bool) -> tuple[ImageSet, NDArray[np.bool_], Duplicates]:
    """The images to evaluate, bool (N,) which of the given ones these are, and what was found."""
    first = first_copies(images)
    found = count_duplicates(images, first)
    if not drop:
        return images, np.ones(len(first), dtype=bool), found
    images, kept = without_duplicates(images, first)
    return images, kept, replace(found, dropped=int((~kept).sum()))


def _embed(candidate: Candidate, images: ImageSet, progress: Progress) -> Embedded:
    task = progress.add_task(f"embedding with {candidate.name}", total=len(images.table))
    return embed_candidate(candidate, images, BATCH_SIZE, lambda n: progress.advance(task, n))


def _as_baseline(embedded: Embedded) -> Embedded:
    return Embedded(embedded.name, embedded.vectors, baseline=True, about=embedded.about)


def _from_file(path: Path, file: SavedEmbeddings, kept: NDArray[np.bool_] | None) -> Embedded:
    vectors = file.vectors
    if vectors.ndim != 2:
        raise InputError(f"{path}: embeddings must have shape (items, dimensions), not {vectors.shape}")
    if kept is not None:
        if len(vectors) != len(kept):
            raise InputError(
                f"{path}: {len(vectors)} embeddings for {len(kept)} images; rows must correspond"
            )
        vectors = vectors[kept]
    about = {"file": str(path), "dim": int(vectors.shape[1])}
    return Embedded(path.stem, vectors, baseline=False, about=about)


def _subject(
    images: ImageSet | None,
    files: Sequence[tuple[Path, SavedEmbeddings]],
    labels: Path | None,
    relevance: str | None,
) -> Subject:
    if images is not None:
        columns = {name: _column(values.to_pylist()) for name, values in images.table.metadata.items()}
        return Subject(
            images.table.labels,
            images.table.class_names,
            images.queries,
            images.gallery,
            _label_sets(columns, relevance),
            columns,
        )
    path, first = files[0]
    found = load_labels(labels) if labels is not None else first.labels
    if found is None:
        raise InputError(f"{path}: holds no labels; give --labels FILE (or --data)")
    if found.ndim != 1 or len(found) != len(first.vectors):
        raise InputError(f"{len(first.vectors)} embeddings in {path}, but labels of shape {found.shape}")
    names, codes = np.unique(found, return_inverse=True)
    return Subject(
        codes.astype(np.int64),
        [str(name) for name in names],
        relevance=_label_sets(first.columns, relevance),
        columns=first.columns,
    )


def _column(values: list[Any]) -> NDArray[Any]:
    """Values of one metadata column, (N,); numpy would make a matrix of lists, or refuse them."""
    if not any(isinstance(value, (list, dict)) for value in values):
        return np.array(values)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _label_sets(columns: dict[str, NDArray[Any]], relevance: str | None) -> list[frozenset[str]] | None:
    if relevance is None:
        return None
    if relevance not in columns:
        raise InputError(
            f"--relevance {relevance}: the data has no such column, only {', '.join(columns) or 'none'}"
        )
    return [
        frozenset(str(v) for v in value)
        if isinstance(value, (list, tuple))
        else frozenset(str(value).split(";"))
        for value in columns[relevance].tolist()
    ]


def _notes(images: ImageSet | None, broken: Sequence[str], first: Measured) -> list[str]:
    notes = []
    if images is None:
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
