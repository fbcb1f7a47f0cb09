"""``kindred evaluate``: measures models and writes tables and a report.

Heavy packages are imported inside functions, so that help and errors in the arguments come at once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.memory import keep_freed_memory, parse_size
from models.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from app.evaluation.evaluation import Evaluation
    from models.metrics import FewShot


def evaluate(
    *,
    bundle: Sequence[Path] = (),
    checkpoint: Sequence[Path] = (),
    embeddings: Sequence[Path] = (),
    labels: Path | None = None,
    data: str | None = None,
    split: str = "test",
    query: str | None = None,
    gallery: str | None = None,
    relevance: str | None = None,
    pairs: Path | None = None,
    out: Path = Path("evaluation"),
    ks: tuple[int, ...] = (1, 2, 4, 8),
    max_queries: int | None = None,
    drop_duplicates: bool = False,
    memory: str = "1GB",
    rerank: bool = False,
    clustering: bool = False,
    n_way: int | None = None,
    shots: int = 1,
    episodes: int = 1000,
    episode_queries: int = 1,
    within: str | None = None,
    allow_seen_classes: bool = False,
    calibrate: bool = True,
    index: Sequence[str] = (),
    fail_under: Sequence[str] = (),
    report: bool = True,
    seed: int = 0,
    device: str = "auto",
    trust_code: bool = False,
) -> int:
    """Measure exact recall@k of bundles, checkpoints or saved embeddings, and of baselines.

    Writes results.json, models.csv, classes.csv and report.html, which works offline. Every item of the split
    is a query against all others, unless --query or a column is_query selects queries.

    Args:
        bundle: Folders of models; several are compared side by side.
        checkpoint: Checkpoints of kindred fit.
        embeddings: Saved embeddings of any origin: .npy, .npz, .parquet, or a folder of kindred embed.
        labels: Labels of saved embeddings whose file has none: .npy, or text with one label in each line.
        data: A folder, a ZIP file, a CSV or Parquet table, or the name of a known data set.
        split: test, val, train or all. The data are split as for the training of the first model.
        query: Pattern of the file names of queries, for example "test_*".
        gallery: Patterns of the file names of the gallery, separated by commas; by default all others.
        relevance: Metadata column with labels separated by ";": items with one label in common match.
        pairs: Verification pairs: a CSV (image_a, image_b, same) or LFW's pairs.txt.
        out: Folder to write to.
        ks: Values of k for recall@k in the table.
        max_queries: Evaluate a random sample of queries against the full gallery.
        drop_duplicates: Keep one of each set of byte-identical images: a query if there is one, else the
            first.
        memory: Limit of working memory, for example 512MB or 2GB.
        rerank: Also report metrics after k-reciprocal re-ranking.
        clustering: Also compute NMI and AMI (slow).
        n_way: Also measure few-shot accuracy with this number of random classes in an episode.
        shots: Labelled examples of each class in an episode.
        episodes: Number of random draws of classes and items.
        episode_queries: Items of each class to classify in an episode.
        within: Metadata column, such as alphabet: also draw episodes whose classes share one value of it.
        allow_seen_classes: Also test on classes that a model was trained on.
        calibrate: Compute thresholds for false accept rates and write them into the first bundle.
        index: FAISS factory strings, or folders of stores, to compare with exact search.
        fail_under: Conditions on the first model, such as recall@1=0.9; exit code 1 if one is not met.
        report: Write the HTML report.
        seed: Random seed of samples, bootstrap and the untrained network.
        device: Where networks and similarities are computed: auto, cpu or cuda.
        trust_code: Allow a backbone class outside the known packages; importing it runs its code.

    Returns:
        0, or 1 if a condition is not met.
    """
    floors = _floors(fail_under)
    budget = parse_size(memory)
    if seed < 0:
        raise InputError(f"--seed {seed}: give 0 or more")
    if n_way is None and within is not None:
        raise InputError("--within is part of few-shot evaluation: give --n-way too")
    if not bundle and not checkpoint and not embeddings and data is None:
        raise InputError("nothing to evaluate: give --bundle, --checkpoint, --embeddings or --data")

    from rich.console import Console

    from app.evaluation.embedding_files import load_embeddings
    from app.evaluation.evaluated_models import load_models, saved_model
    from app.evaluation.evaluation import items_of_embeddings, run_evaluation, seen_notes
    from app.evaluation.evaluation_set import select_images
    from app.evaluation.index_recall import measure_index
    from app.evaluation.measure import Options
    from app.evaluation.pairs import measure_pairs
    from app.evaluation.results import as_json, write_class_csv, write_json, write_model_csv
    from app.reports import write_report

    console = Console()
    options = Options(
        tuple(ks),
        max_queries,
        budget,
        rerank,
        clustering,
        _protocols(n_way, shots, episodes, episode_queries, within),
        seed,
        drop_duplicates,
        device,
    )
    keep_freed_memory()
    models = load_models(bundle, checkpoint, device, trust_code)
    if models and data is None:
        raise InputError("a bundle or checkpoint needs images to embed: give --data")
    saved = [load_embeddings(path) for path in embeddings]
    if data is None:
        notes = []
        items = items_of_embeddings(embeddings[0], saved[0], labels, relevance)
    else:
        recorded = [model.bundle.info.get("split") for model in models if model.bundle is not None]
        items = select_images(data, split, query, gallery, next(filter(None, recorded), None), relevance)
        notes = seen_notes(models, items, allow=allow_seen_classes)
    models += [saved_model(path, file) for path, file in zip(embeddings, saved, strict=True)]
    out.mkdir(parents=True, exist_ok=True)  # fails before the long work if it cannot be written
    evaluation = run_evaluation(
        models, items, options=options, calibrated=calibrate, notes=notes, console=console
    )
    results = as_json(evaluation, " ".join(["kindred", *sys.argv[1:]]))
    if pairs is not None:
        results["pairs"] = measure_pairs(pairs, evaluation)
    if index:
        results["index"] = [measure_index(text, evaluation) for text in index]
    write_json(out / "results.json", results)
    write_model_csv(out / "models.csv", evaluation)
    write_class_csv(out / "classes.csv", evaluation)
    if report:
        write_report(out / "report.html", evaluation, results)
    _store_in_bundle(evaluation, results)
    _show(console, evaluation, results, out)
    first = evaluation.models[0]
    failures = _failures(floors, first.metrics)
    for failure in failures:
        console.print(f"[red]{first.name}: {failure}[/red]")
    return 1 if failures else 0


def _floors(texts: Sequence[str]) -> list[tuple[str, float]]:
    """Metrics and their lower limits, from conditions such as `recall@1=0.9`."""
    floors = []
    for text in texts:
        metric, _, least = text.rpartition("=")
        try:
            floors.append((metric.strip(), float(least)))
        except ValueError as error:
            raise InputError(f"--fail-under {text}: write it as recall@1=0.9") from error
    return floors


def _failures(floors: Sequence[tuple[str, float]], metrics: Mapping[str, float]) -> list[str]:
    """A message for each metric below its limit."""
    for metric, _ in floors:
        if metric not in metrics:
            raise InputError(f"--fail-under {metric}: not measured; choose among {', '.join(metrics)}")
    return [
        f"{metric} is {metrics[metric]:.4f}, under {least:g}"
        for metric, least in floors
        if not metrics[metric] >= least
    ]


def _protocols(
    n_way: int | None, shots: int, episodes: int, queries: int, within: str | None
) -> tuple[FewShot, ...]:
    """Few-shot protocols: among all classes, and within the values of a column if one is named."""
    from models.metrics import FewShot

    if n_way is None:
        return ()
    groups = (None,) if within is None else (None, within)
    return tuple(FewShot(n_way, shots, episodes, queries, group) for group in groups)


def _store_in_bundle(evaluation: Evaluation, results: dict[str, Any]) -> None:
    """Write thresholds and metrics into the first bundle, from which the server reads them."""
    first, described = evaluation.models[0], results["models"][0]
    if first.bundle is None or first.folder is None or not first.thresholds:
        return
    kept = ("source", "split", "split_hash", "items", "classes")
    first.bundle.update(
        first.folder,
        info={
            "evaluation": {
                **{name: results["data"][name] for name in kept},
                "metrics": {name: first.metrics[name] for name in first.intervals},
                "intervals_95": described["intervals_95"],
            },
            "calibration": described["thresholds"],
        },
        thresholds={f"{threshold.far:g}": threshold.threshold for threshold in first.thresholds},
    )


def _show(console: Console, evaluation: Evaluation, results: dict[str, Any], out: Path) -> None:
    from app.evaluation.results import as_few_shot_table, as_table

    console.print(as_table(evaluation))
    if evaluation.options.few_shot:
        console.print(as_few_shot_table(evaluation))
    for note in evaluation.notes:
        console.print(f"[yellow]{note}[/yellow]")
    for line in evaluation.broken[:20]:
        console.print(f"  skipped {line}", markup=False)
    for threshold in evaluation.models[0].thresholds:
        console.print(
            f"threshold for a false accept rate of {threshold.far:g}: {threshold.threshold:.4f} "
            f"({threshold.low:.4f}–{threshold.high:.4f}), true accept rate {threshold.tar:.3f}"
        )
    for name in ("pairs", "index"):
        if name in results:
            console.print_json(data={name: results[name]})
    console.print(f"written to {out}/")
