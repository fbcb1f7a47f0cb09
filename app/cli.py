"""The ``kindred`` command: dispatches to the commands and reports bad input in one line, exit code 2."""

import errno
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from models.cache_folder import cache_root
from models.errors import InputError
from models.renamed import renamed_argument, renamed_config

ROOT = Path(__file__).parents[1]  # the checkout or the folder of installed packages; it contains configs/

# LightningCLI parses the options of these commands; this is their help in the overview.
TRAINING = {
    "fit": "Train from a YAML config; writes checkpoints, logs and a bundle",
    "validate": "Measure a checkpoint on the validation classes",
    "test": "Measure a checkpoint on the test classes",
    "predict": "Embed with a checkpoint through the Trainer",
}

app = App(
    name="kindred",
    version=lambda: version("kindred"),
    suppress_keyboard_interrupt=False,  # `main` reports it in one line
    help="Turn labelled images into a visual search that keeps working on classes it never saw.",
)
# Every other command is a typed function: its signature and docstring define the options and their help. Its
# module is imported when the command is called, and heavy packages only when it runs, so that help is fast.
app.command("app.commands.demo:demo", help="Draw data, train, evaluate and serve: all in one command")
app.command(
    "app.commands.evaluate:evaluate", help="Measure exact recall@k of bundles, checkpoints or embeddings"
)
app.command("app.commands.embed:embed", help="Embed images into Parquet files, on any number of devices")
app.command(
    "app.commands.index:app", name="index", help="Embed images into a store; tune picks its index type"
)
app.command("app.commands.serve:serve", help="Serve a bundle and its store over HTTP, with a search page")
app.command("app.commands.search:search", help="Search a running service by image and print the neighbours")
app.command("app.commands.export:export", help="Turn a checkpoint or a pretrained network into a bundle")
app.command("app.commands.experiment:experiment", help="Repeat an experiment of the documentation's evidence")


def _train(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    from app.fit import run_training

    _read_former_names()
    run_training([renamed_argument(_own_config(argument)) for argument in arguments])
    return 0


@cache
def _read_former_names() -> None:
    """Accept former names of settings in configs."""
    from jsonargparse import get_loader, set_loader
    from yaml import YAMLError

    load = get_loader("yaml")
    set_loader("yaml", lambda text: renamed_config(load(text)), exceptions=(YAMLError,))


def _own_config(argument: str) -> str:
    """Replace a path configs/... that does not exist here by the config that was installed with Kindred."""
    option, equals, path = argument.rpartition("=")
    if path.startswith("configs/") and not Path(path).exists() and (ROOT / path).is_file():
        return f"{option}{equals}{ROOT / path}"
    return argument


for _name, _help in TRAINING.items():
    app.command(_train, name=_name, help=_help)


# File-system errors that the user can mend. Errors of a full disk may name no file.
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSALS = (
    *_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST
)  # fmt: skip


def _file_trouble(error: OSError) -> InputError | None:
    """The one-line error for a file that cannot be read or written; None if it may be a bug."""
    if error.filename is None:
        known, name = error.errno in _FULL, "disk"
    else:
        known, name = error.errno in _REFUSALS, str(error.filename)
        if Path(name).is_relative_to(cache_root()):
            return InputError(f"{name}: {error.strerror}; set KINDRED_CACHE to a folder that can be written")
    if not known:
        return None
    return InputError(f"{name}: {error.strerror}; make it writable or make room, or name another place")


def _user_error(error: InputError | OSError | ModuleNotFoundError) -> InputError | None:
    """The one-line error to print; None if the error is a bug."""
    if isinstance(error, OSError):
        return _file_trouble(error)
    if isinstance(error, ModuleNotFoundError) and find_spec("torch") is None:
        return InputError("this needs packages that are not installed: pip install 'kindred[cpu]' (or gpu)")
    return error if isinstance(error, InputError) else None


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuses an option without a value, such as --data "$UNSET": an empty path would mean this folder."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        option, equals, value = argument.partition("=")
        if not argument:
            option, equals = before, "="
        if equals and not value and option.startswith("--") and option != "--label":
            raise InputError(f"{option} is empty; give it a value, or leave it out")


def _home(argument: str) -> str:
    """Replaces the ~ of --option=~/path, which shells leave as it is, by the home folder."""
    option, _, path = argument.partition("=~/")
    return f"{option}={Path.home() / path}" if path and option.startswith("--") else argument


def _run(arguments: Sequence[str]) -> int:
    arguments = [_home(argument) for argument in arguments]
    with_own_classes = bool(arguments) and (arguments[0] in TRAINING or "--trust-code" in arguments)
    if with_own_classes and (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last, so that a folder "data" there does not hide our package
    if arguments and arguments[0] in TRAINING:
        return _train(*arguments)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in app:
        # Cyclopts would import every command before it reports this.
        known = ", ".join(name for name in app if not name.startswith("-"))
        raise InputError(f'Unknown command "{arguments[0]}": choose one of {known}')
    _refuse_empty(arguments)
    try:
        outcome = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        raise InputError(f"{error} (kindred --help says more)") from error
    return outcome if isinstance(outcome, int) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, 2 after bad input, 130 after Ctrl-C, or the command's own exit code.
    """
    try:
        return _run(sys.argv[1:] if arguments is None else list(arguments))
    except (InputError, OSError, ModuleNotFoundError) as error:
        reported = _user_error(error)
        if reported is None:
            raise
        print(f"kindred: {' '.join(str(reported).split())}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("kindred: interrupted", file=sys.stderr)  # noqa: T201
        return 130
