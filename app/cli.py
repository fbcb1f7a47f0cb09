"""The ``kindred`` command: finds the command's function and turns bad input into one line and exit code 2."""

import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from models.errors import InputError

# Training goes through LightningCLI, whose options are its own; this is only what the overview says of it.
TRAINING = {
    "fit": "Train from a YAML config; writes checkpoints, logs and a bundle",
    "validate": "Measure a checkpoint on the validation classes",
    "test": "Measure a checkpoint on the test classes",
    "predict": "Embed with a checkpoint through the Trainer",
}

app = App(
    name="kindred",
    suppress_keyboard_interrupt=False,  # `main` tells it in one line
    help="Turn labelled images into a visual search that keeps working on classes it never saw.",
)
# Every other command is a typed function whose signature and docstring are its options and their help. The
# modules are imported only when their command is called.
app.command("app.demo:demo", help="Draw data, train, evaluate and serve: the whole product in one command")
app.command("app.evaluate:evaluate", help="Measure exact recall@k of bundles, checkpoints or embeddings")
app.command("app.embed.command:embed", help="Embed images into Parquet files, on any number of devices")
app.command("app.index:app", name="index", help="Embed images into a store; index tune picks the index type")
app.command("app.serve:serve", help="Serve a bundle and its store over HTTP, with a search page")
app.command("app.search:search", help="Search a running service by image and print the neighbours")
app.command("app.export:export", help="Turn a checkpoint or a pretrained network into a bundle")
app.command("app.experiment.command:experiment", help="Repeat an experiment of the documentation's evidence")


def _train(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    from jsonargparse import ArgumentError

    from app.fit import run_training

    try:
        run_training(arguments)
    except ArgumentError as error:
        raise InputError(str(error)) from error
    return 0


for _name, _help in TRAINING.items():
    app.command(_train, name=_name, help=_help)


def _run(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in TRAINING:
        return _train(*arguments)
    try:
        outcome = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        raise InputError(f"{error} (kindred --help says more)") from error
    return outcome if isinstance(outcome, int) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, or 2 after bad input, or 130 after Ctrl-C, or what the command itself decided.
    """
    try:
        return _run(sys.argv[1:] if arguments is None else list(arguments))
    except InputError as error:
        print(f"kindred: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("kindred: interrupted", file=sys.stderr)  # noqa: T201
        return 130
