"""``kindred experiment``: runs the variants of an experiment and draws its table and curves."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

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
    from app.experiment.run_experiment import run_experiment

    return run_experiment(
        name,
        variants,
        seeds,
        pilot=pilot,
        out=out,
        configs=configs,
        threads=threads,
        device=device,
        draw=draw,
        reduced=reduced,
        check=check,
    )
