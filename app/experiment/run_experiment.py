"""Run the missing runs of an experiment, and draw its table and curves."""

from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.experiment.classification import run_classification
from app.experiment.experiment_config import Experiment, load_experiment
from app.experiment.plots import draw_curves
from app.experiment.runs import Results, Run, planned
from app.experiment.tables import by_variant, draw_table, holds, put_table
from app.experiment.triplets import run_triplets
from app.memory import keep_freed_memory
from models.errors import InputError


def run_experiment(
    name: str,
    variants: list[str] | None,
    seeds: list[int] | None,
    *,
    pilot: bool,
    out: Path | None,
    configs: Path,
    threads: int,
    device: str,
    draw: bool,
    reduced: bool,
    check: bool,
) -> int:
    """Run an experiment; for the arguments see :func:`app.commands.experiment.experiment`."""
    described = load_experiment(configs / f"{name}.yaml")
    results = Results(out or Path("docs") / "results" / name, name)
    if reduced:
        if described.reduced is None:
            raise InputError(f"{name} has no reduced part; run it without --reduced")
        variants, seeds = variants or described.reduced.variants, seeds or described.reduced.seeds
    runs = planned(described, variants, seeds, pilot=pilot)
    missing = results.missing(runs)
    console = Console()
    console.print(
        f"{described.title}\n{len(runs)} runs, {len(runs) - len(missing)} done already", highlight=False
    )
    torch.set_num_threads(threads)
    keep_freed_memory()
    _run_all(missing, results, device, console)
    if draw:
        records = list(results.records(described))
        table = draw_table(described, by_variant(records))
        page = results.folder / "README.md"
        text = page.read_text(encoding="utf-8") if page.is_file() else None
        page.write_text(put_table(text, table, described, name), encoding="utf-8")
        draw_curves(described, records, results.folder / "curves.png")
        console.print(Markdown(table))
        console.print(f"{results.folder}: runs.jsonl, README.md, curves.png", highlight=False)
    return _check(described, results, console) if check else 0


def _check(described: Experiment, results: Results, console: Console) -> int:
    metrics = by_variant(results.records(described))
    failed = False
    for comparison in described.comparisons:
        found = holds(comparison, described.metric, metrics)
        if found is not None:
            failed |= not found
            console.print(f"{'holds' if found else 'DOES NOT HOLD'}: {comparison.title}", highlight=False)
    return int(failed)


def _run_all(runs: list[Run], results: Results, device: str, console: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        for run in runs:
            if results.is_done(run):  # by another process
                continue
            task = progress.add_task(f"{run.variant}, seed {run.seed}")

            def shown(done: int, total: int, task: object = task) -> None:
                progress.update(task, completed=done, total=total)  # type: ignore[arg-type]

            perform = run_triplets if run.setting.task == "triplets" else run_classification
            outcome = perform(run.setting, run.seed, shown, device)
            results.write(run, outcome)
            progress.remove_task(task)
            main = outcome["metrics"]
            brief = ", ".join(f"{key} {main[key]:.3f}" for key in sorted(main) if not key.startswith("loss"))
            console.print(
                f"{run.variant}, seed {run.seed}: {brief} ({outcome['seconds']:.0f} s)", highlight=False
            )
