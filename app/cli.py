"""The ``kindred`` command: finds the command's function and turns bad input into one line and exit code 2."""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentError, auto_cli

from models.errors import InputError

# Training goes through LightningCLI; every other command is a typed function whose signature and docstring
# are its options and their help. Modules are imported only when their command is called.
TRAINING = {
    "fit": "Train from a YAML config; writes checkpoints, logs and a bundle",
    "validate": "Measure a checkpoint on the validation classes",
    "test": "Measure a checkpoint on the test classes",
    "predict": "Embed with a checkpoint through the Trainer",
}
FUNCTIONS = {
    "demo": ("app.demo", "demo", "Draw data, train, evaluate and serve: the whole product in one command"),
    "evaluate": ("app.evaluate", "evaluate", "Measure exact recall@k of bundles, checkpoints or embeddings"),
    "index": ("app.index", "index", "Embed images into a store that can be searched"),
    "index tune": ("app.tune", "tune", "Pick the index type and its parameters on your own vectors"),
    "serve": ("app.serve", "serve", "Serve a bundle and its store over HTTP, with a search page"),
    "search": ("app.search", "search", "Search a running service by image and print the neighbours"),
    "export": ("app.export", "export", "Turn a checkpoint into a bundle"),
}


def _usage() -> str:
    rows = [*TRAINING.items(), *((name, entry[2]) for name, entry in FUNCTIONS.items())]
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {text}" for name, text in rows]
    return "usage: kindred COMMAND [options]\n\n" + "\n".join(lines) + "\n\nkindred COMMAND --help says more."


def _function(arguments: Sequence[str]) -> tuple[str, Callable[..., Any], list[str]] | None:
    """The longest command name that the arguments begin with, its function and what remains."""
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if len(arguments) >= words and name in FUNCTIONS:
            module, function, _ = FUNCTIONS[name]
            return name, getattr(importlib.import_module(module), function), list(arguments[words:])
    return None


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())  # noqa: T201
        return 0
    if arguments[0] in TRAINING:
        from app.fit import run_training

        run_training(list(arguments))
        return 0
    found = _function(arguments)
    if found is None:
        raise InputError(f"no command {arguments[0]!r}; kindred --help lists them")
    name, function, rest = found
    outcome = auto_cli(function, args=rest, prog=f"kindred {name}", exit_on_error=False)
    return outcome if isinstance(outcome, int) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, or 2 after bad input, or 130 after Ctrl-C, or what the command itself decided.
    """
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except (InputError, ArgumentError) as error:
        print(f"kindred: {_one_line(error)}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("kindred: interrupted", file=sys.stderr)  # noqa: T201
        return 130


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
