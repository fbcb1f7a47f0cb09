"""``kindred experiment``: runs the variants of an experiment and draws its table and curves."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markdown import Markdown

from models.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs" / "experiment"
Many = Parameter(consume_multiple=True)


def experiment(
    name: str,
    /,
    *,
    variants: Annotated[list[str] | None, Many] = None,
    seeds: Annotated[list[int] | None, Many] = None,
    pilot: bool = False,
    out: Path | None = None,
    configs: Path = CONFIGS,
    threads: int = 1,
    device: str = "cpu",
    draw: bool = True,
    reduced: bool = False,
    check: bool = False,
) -> int:
    """Run an experiment's variants over its seeds and draw the table and the curves.

    Runs that were made with the same settings are skipped, so start the command again to continue.

    Args:
        name: File name in the folder of experiments, without its extension.
        variants: Run only these; by default all with the first seed, and the primary ones with every seed.
        seeds: Use these seeds instead of the experiment's.
        pilot: Use only the first seed.
        out: Folder for runs, table and curves; by default docs/results/NAME.
        configs: Folder of experiments.
        threads: Threads of torch; metrics may differ in the last digits between numbers of threads.
        device: cpu or cuda; metrics differ between devices by more than the last digits.
        draw: Draw the table and the curves at the end; use --no-draw if several processes share the work.
        reduced: Run only the part that shows whether the published conclusions hold.
        check: Report for each published conclusion whether it holds in these runs.

    Returns:
        The exit code: 1 if a checked conclusion does not hold, else 0.

    Raises:
        InputError: The experiment does not exist or is invalid.
    """
    if threads < 1:
        raise InputError(f"--threads {threads}: must be at least 1")
    import torch

    from app.experiment.experiment_config import load_experiment
    from app.experiment.runs import Results, planned, run_missing
    from app.experiment.tables import by_variant, draw_curves, draw_table, holds, put_table
    from app.memory import keep_freed_memory

    described = load_experiment(configs / f"{name}.yaml")
    results = Results(out or Path("docs") / "results" / name, name)
    if reduced:
        if described.reduced is None:
            raise InputError(f"{name} has no reduced part; run it without --reduced")
        variants, seeds = variants or described.reduced.variants, seeds or described.reduced.seeds
    runs = planned(described, variants, seeds, pilot=pilot)
    missing = [run for run in runs if not results.is_done(run)]
    console = Console(highlight=False)
    console.print(f"{described.title}\n{len(runs)} runs, {len(runs) - len(missing)} done already")
    torch.set_num_threads(threads)
    keep_freed_memory()
    run_missing(missing, results, device, console)
    records = list(results.records(described))
    metrics = by_variant(records)
    if draw:
        table = draw_table(described, metrics)
        page = results.folder / "README.md"
        text = page.read_text(encoding="utf-8") if page.is_file() else None
        page.write_text(put_table(text, table, described, name), encoding="utf-8")
        draw_curves(described, records, results.folder / "curves.png")
        console.print(Markdown(table))
        console.print(f"{results.folder}: runs.jsonl, README.md, curves.png")
    failed = False
    for comparison in described.comparisons if check else ():
        found = holds(comparison, described.metric, metrics)
        if found is not None:
            failed |= not found
            console.print(f"{'holds' if found else 'DOES NOT HOLD'}: {comparison.title}")
    return int(failed)
