"""The runs of an experiment, one line of JSON each; a second start does only the missing ones."""

import fcntl
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from app.experiment.classification import run_classification
from app.experiment.experiment_config import Experiment, Setting
from app.experiment.triplets import run_triplets
from app.progress import counting_progress
from models.errors import InputError
from models.files import replacing
from models.inference import versions
from models.renorm import native

Record = dict[str, Any]
_NEEDED = ("variant", "seed", "setting", "metrics", "curve")


@dataclass(frozen=True)
class Run:
    """A variant with a seed."""

    variant: str
    seed: int
    setting: Setting


class Results:
    """The folder of an experiment's results: ``runs.jsonl``, ``README.md`` and ``curves.png``."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.path = folder / "runs.jsonl"

    def read(self) -> dict[tuple[str, int], Record]:
        """Every record, by variant and seed.

        Raises:
            InputError: the file cannot be read, or a line of it is broken.
        """
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path}: cannot be read ({error})") from error
        runs: dict[tuple[str, int], Record] = {}
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                variant, seed, *_ = (record[key] for key in _NEEDED)
                runs[variant, seed] = record
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(
                    f"{self.path}: line {number} is no run; delete it to run it again"
                ) from error
        return runs

    def is_done(self, run: Run) -> bool:
        """Whether a record was made with the run's setting; keys that it lacks had their defaults."""
        try:
            return Setting.model_validate(self.read()[run.variant, run.seed]["setting"]) == run.setting
        except (KeyError, ValidationError):
            return False

    def write(self, run: Run, outcome: Record) -> None:
        """Store the results of a run, with all that is needed to repeat it.

        The file is replaced atomically, under a lock.
        """
        kernels = "" if native.enabled() else "KINDRED_RENORM_NATIVE=0 "
        record = {
            "experiment": self.name,
            "variant": run.variant,
            "seed": run.seed,
            "command": f"{kernels}kindred experiment {self.name} --variants {run.variant} --seeds {run.seed}",
            "versions": versions("kindred", "torch", "torchvision", "numpy"),
            "platform": f"{sys.platform} {platform.machine()}",
            **outcome,
            "setting": run.setting.model_dump(mode="json"),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # closing the folder unlocks it, as does the process's end
            runs = {**self.read(), (run.variant, run.seed): record}
            text = "".join(json.dumps(runs[key]) + "\n" for key in sorted(runs))
            with replacing(self.path) as fresh:
                fresh.write_text(text, encoding="utf-8")
        finally:
            os.close(folder)

    def records(self, experiment: Experiment) -> Iterator[Record]:
        """Every record of the experiment's variants, by variant and seed."""
        runs = self.read()
        for variant in experiment.variants:
            yield from (runs[key] for key in sorted(runs) if key[0] == variant)


def planned(
    experiment: Experiment, variants: list[str] | None, seeds: list[int] | None, *, pilot: bool
) -> list[Run]:
    """The runs to do, seed by seed, so that paired variants are complete early.

    ``variants`` and ``seeds``, for every variant, replace the experiment's; ``pilot`` keeps the first seed.
    """
    chosen = list(experiment.variants) if variants is None else variants
    every = experiment.seeds if seeds is None else seeds
    every = every[:1] if pilot else every
    primary = set(experiment.primary) if seeds is None and variants is None else set(chosen)
    return [
        Run(variant, seed, experiment.setting(variant))
        for number, seed in enumerate(every)
        for variant in chosen
        if number == 0 or variant in primary
    ]


def run_missing(runs: list[Run], results: Results, device: str, console: Console) -> None:
    """Perform runs that no other process has done meanwhile, write each, and print its metrics."""
    with counting_progress(console=console, transient=True) as progress:
        for run in runs:
            if results.is_done(run):
                continue
            task = progress.add_task(f"{run.variant}, seed {run.seed}")

            def shown(done: int, total: int, task: Any = task) -> None:
                progress.update(task, completed=done, total=total)

            perform = run_triplets if run.setting.task == "triplets" else run_classification
            outcome = perform(run.setting, run.seed, shown, device)
            results.write(run, outcome)
            progress.remove_task(task)
            main = outcome["metrics"]
            brief = ", ".join(f"{key} {main[key]:.3f}" for key in sorted(main) if not key.startswith("loss"))
            console.print(f"{run.variant}, seed {run.seed}: {brief} ({outcome['seconds']:.0f} s)")
