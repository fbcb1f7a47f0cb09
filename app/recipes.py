"""Several recipes for the same images: each is tried for a part of its steps, the best one is trained."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from models.errors import InputError

CHOSEN = "recipe.json"

# What a trial leaves out: its checkpoints choose its best figure, nothing else of it is kept.
_QUIET = (
    "--trainer.enable_model_summary=false",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.logger=false",
)


def with_recipe(arguments: Sequence[str], recipe: Path | str) -> list[str]:
    """Arguments of ``kindred fit`` with one more config, after the others and before what overrides them."""
    after = 1
    for position, argument in enumerate(arguments):
        if argument == "--config" or argument == "-c":
            after = position + 2
        elif argument.startswith("--config="):
            after = position + 1
    return [*arguments[:after], f"--config={recipe}", *arguments[after:]]


def chosen_recipe(run: Path) -> str | None:
    """The recipe that an earlier start of this run chose."""
    path = run / CHOSEN
    return str(json.loads(path.read_text(encoding="utf-8"))["recipe"]) if path.is_file() else None


def choose_recipe(
    arguments: Sequence[str],
    recipes: Sequence[str],
    share: float,
    run: Path,
    steps_of: Callable[[list[str]], int],
    train: Callable[[list[str]], Any],
) -> str:
    """Try every recipe on the validation classes and keep the best one's name in the run folder.

    A trial is a whole run with a schedule of its own, only shorter.

    Args:
        arguments: of ``kindred fit``.
        recipes: config files.
        share: of a recipe's steps, in (0, 1), that its trial takes.
        run: the run's folder; trials lie in ``trials/`` below it.
        steps_of: tells a recipe's ``trainer.max_steps`` from arguments.
        train: runs ``kindred fit`` with arguments and returns the finished Trainer.

    Raises:
        InputError: the share is none, or a recipe says no number of steps.
    """
    if not 0 < share < 1:
        raise InputError(f"trial_share {share:g}: a share of a recipe's steps, between 0 and 1")
    console = Console()
    found: list[dict[str, Any]] = []
    for recipe in recipes:
        name = Path(recipe).stem
        whole = steps_of(with_recipe(arguments, recipe))
        if whole < 1:
            raise InputError(f"{recipe}: a recipe that is tried needs trainer.max_steps")
        steps = max(1, round(share * whole))
        console.print(f"trying recipe {name}: {steps} of its {whole} steps")
        started = time.monotonic()
        options = [f"--run={run / 'trials' / name}", "--overwrite=true", "--recipes=null", "--compare=false"]
        length = [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}"]
        trainer = train([*with_recipe(arguments, recipe), *options, *_QUIET, *length])
        score = trainer.checkpoint_callback.best_model_score
        if score is None:
            raise InputError(
                "recipes are compared on validation classes, and there are none: set val_fraction, or name "
                f"one recipe with --config {recipe} --recipes null"
            )
        figure = trainer.checkpoint_callback.monitor
        seconds = time.monotonic() - started
        found.append(
            {"recipe": str(recipe), "steps": steps, figure: float(score), "seconds": round(seconds, 1)}
        )
    best = max(found, key=lambda trial: trial[figure])
    run.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"recipe": best["recipe"], "trials": found}, indent=2) + "\n"
    (run / CHOSEN).write_text(content, encoding="utf-8")
    console.print(_table(found, best, figure))
    return str(best["recipe"])


def _table(found: list[dict[str, Any]], best: dict[str, Any], figure: str) -> Table:
    table = Table("recipe", "steps", figure, "seconds", title="trials", box=box.SIMPLE_HEAD)
    for trial in found:
        cells = (
            Path(trial["recipe"]).stem,
            str(trial["steps"]),
            f"{trial[figure]:.3f}",
            f"{trial['seconds']:.0f}",
        )
        table.add_row(*cells, style="bold" if trial is best else None)
    return table
