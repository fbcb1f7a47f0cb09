"""The runs of an experiment on disk: one JSON each, so that a second start does only what is missing."""

import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.experiment.settings import Experiment, Setting
from models.errors import InputError
from models.renorm import native

PACKAGES = ("kindred", "torch", "torchvision", "numpy")


@dataclass(frozen=True)
class Run:
    """An arm with a seed."""

    arm: str
    seed: int
    setting: Setting


class Results:
    """The folder of an experiment's results.

    Args:
        folder: ``runs/<arm>-<seed>.json``, ``table.md`` and ``curves.png`` lie in it.
        name: of the experiment.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name

    def path(self, arm: str, seed: int) -> Path:
        """Where a run's figures lie."""
        return self.folder / "runs" / f"{arm}-{seed}.json"

    def read(self, arm: str, seed: int) -> dict[str, Any] | None:
        """A run's record, or None where it has not been run.

        Raises:
            InputError: the file is broken.
        """
        path = self.path(arm, seed)
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({error}); delete it to run it again") from error
        return record

    def is_done(self, run: Run) -> bool:
        """Whether the run's record is there and was made with the very same setting."""
        record = self.read(run.arm, run.seed)
        return record is not None and _made_with(run.setting, record)

    def take_over(self, run: Run) -> str | None:
        """Copy the record of another experiment beside this one that ran the very same setting and seed.

        Returns:
            The other experiment's name, which the copy keeps as ``taken_from``; None where there is none.
        """
        for path in sorted(self.folder.parent.glob(f"*/runs/*-{run.seed}.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            if _made_with(run.setting, record) and path.parent.parent != self.folder:
                kept = {key: record[key] for key in record if key not in ("experiment", "arm", "seed")}
                self._write(run, {"taken_from": record["experiment"], **kept})
                return str(record["experiment"])
        return None

    def write(self, run: Run, outcome: dict[str, Any]) -> None:
        """Keep what a run gave, with all that is needed to repeat it; the file appears complete or not at
        all.
        """
        kernels = "KINDRED_RENORM_NATIVE=1 " if native.enabled() else ""
        record = {
            "command": f"{kernels}kindred experiment {self.name} --arms {run.arm} --seeds {run.seed}",
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "platform": f"{sys.platform} {platform.machine()}",
            **outcome,
            "setting": run.setting.model_dump(mode="json"),
        }
        self._write(run, record)

    def _write(self, run: Run, content: dict[str, Any]) -> None:
        record = {"experiment": self.name, "arm": run.arm, "seed": run.seed, **content}
        path = self.path(run.arm, run.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        part.replace(path)

    def records(self, experiment: Experiment) -> Iterator[dict[str, Any]]:
        """Every record of the experiment's arms, by arm and seed."""
        for arm in experiment.arms:
            for seed in sorted({*experiment.seeds, *self._seeds(arm)}):
                if (record := self.read(arm, seed)) is not None:
                    yield record

    def _seeds(self, arm: str) -> list[int]:
        endings = [path.stem.removeprefix(f"{arm}-") for path in self.folder.glob(f"runs/{arm}-*.json")]
        return [int(ending) for ending in endings if ending.isdecimal()]


def _made_with(setting: Setting, record: dict[str, Any]) -> bool:
    """Whether a record is of this setting; what has been added to settings since had its default then."""
    try:
        recorded = Setting.model_validate(record["setting"])
    except ValidationError:
        return False
    return recorded.model_dump(mode="json") == setting.model_dump(mode="json")


def planned(
    experiment: Experiment, arms: list[str] | None, seeds: list[int] | None, *, pilot: bool
) -> list[Run]:
    """What to run, seed by seed, so that pairs are complete early.

    Args:
        experiment: arms, seeds and which arms are decisive.
        arms: these alone.
        seeds: these for every arm, instead of the experiment's.
        pilot: the first seed alone.
    """
    chosen = list(experiment.arms) if arms is None else arms
    every = experiment.seeds if seeds is None else seeds
    every = every[:1] if pilot else every
    decisive = set(experiment.decisive) if seeds is None and arms is None else set(chosen)
    return [
        Run(arm, seed, experiment.setting(arm))
        for number, seed in enumerate(every)
        for arm in chosen
        if number == 0 or arm in decisive
    ]
