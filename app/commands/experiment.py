"""``kindred experiment``: runs the variants of an experiment, and draws its table and curves."""

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

    A run that is there already, made with the same setting, is skipped: start the command again to continue.

    Args:
        name: of a file in the folder of experiments, without its ending.
        variants: run these alone; by default all with the first seed, and the primary ones with every seed.
        seeds: with these seeds instead of the experiment's.
        pilot: with the first seed alone.
        out: folder for runs, table and curves; by default docs/results/NAME.
        configs: folder of experiments.
        threads: of torch; metrics may differ in their last digits between numbers of threads.
        device: to train on, cpu or cuda; metrics differ between devices in more than their last digits.
        draw: draw the table and the curves at the end; --no-draw where several processes share the work.
        reduced: run only the part that shows whether the published conclusions hold.
        check: say of each published conclusion whether it holds in these runs.

    Returns:
        The exit code: 1 where a conclusion that was checked does not hold, else 0.

    Raises:
        InputError: there is no such experiment, or something in it is wrong.
    """
    if threads < 1:
        raise InputError(f"threads is {threads}; give at least 1")
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
