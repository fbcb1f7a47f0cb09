"""One-line errors from exceptions of jsonargparse and Lightning about a config."""

import difflib
import re
import traceback
from collections.abc import Collection

from jsonargparse import ArgumentError

from models.errors import InputError

# Start of the message about a value that fits none of several types.
_WRAPPED = "Does not validate against any of the Union subtypes"

_NOISE = re.compile(
    f"{_WRAPPED}|Subtypes:|Errors:|Given value type:|Not a valid subclass of|Subclass types expect one of:"
    "|a class path \\(|a dict with|Expected a path but .* either not accessible or invalid"
)
_KEY = re.compile(r'Parser key "(.+)":\s*(.*)')
_CLASS = re.compile(r"Problem with given class_path '(.+)':\s*(.*)")
_CALLABLE = re.compile(r"Type .* expects a function or a callable class: (.*)\. Got value: .*")
_EXPECTED = re.compile(r"Expected an? (?:<class '(.+?)'>|typing\.Literal\[(.+?)\])(?:\. Got value: (.*))?")
_GIVEN = re.compile(r"Given value: (?:NestedArg\(key='.*', val=)?(.*?)\)?$")

_REQUIRED = re.compile(r"the following arguments are required: \w+\.(?:data|model)")
_NO_CLASS = re.compile(r"Expected a dot import path string: (.*)")
_PARTS = {"data": "--data.source", "model": "--model.backbone"}
_UNKNOWN = re.compile(r"(?:Option|option) '([\w.]+)'|unrecognized arguments: --([\w.]+)")

# torch's messages about feature maps that shrink to nothing.
_TOO_SMALL = re.compile(r"Output size is too small|Kernel size can't be greater than actual input size")


def decisive(message: str) -> str:
    """Shorten a message of jsonargparse, which lists every type tried, to the setting and its fault."""
    if "Unexpected config:" in message:  # followed by all of it
        return "config: it holds no settings, such as trainer: {max_epochs: 5}"
    keys: list[str] = []
    reasons: dict[str, None] = {}
    types: list[str] = []
    given = ""
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if found := _KEY.match(text):
            keys.append(found[1])
            text = found[2].removeprefix("- ")
        if found := _CLASS.match(text):
            text = found[2]
        if found := _CALLABLE.match(text):
            text = found[1]
        if not text or _NOISE.match(text):
            continue
        if found := _EXPECTED.match(text):
            types.append((found[1] or " or ".join(found[2].split(", "))).removeprefix("NoneType"))
            given = found[3] or given
        elif _REQUIRED.match(text):
            lacking = [option for part, option in _PARTS.items() if f".{part}" in text]
            reasons[f"give {' and '.join(lacking)}, or a --config with them"] = None
        elif found := _GIVEN.match(text):
            given = found[1]
        elif (found := _NO_CLASS.match(text)) and (usual := _PARTS.get(".".join(keys))):
            reasons[f"{found[1]} is no class; did you mean {usual}={found[1]}?"] = None
        else:
            reasons[text] = None
    if not reasons:
        expected = " or ".join(dict.fromkeys(name for name in types if name)) or "settings"
        reasons[f"expected {expected}, found {given}"] = None
    return ": ".join([*([".".join(keys)] if keys else []), "; ".join(reasons)])


def _suggested(message: str, known: Collection[str]) -> str:
    """What an unknown setting in the message may have been meant to be, as the message's end."""
    if (found := _UNKNOWN.search(message)) is None:
        return ""
    strange = (word for word in (found[1] or found[2]).split(".") if word not in known)
    alike = [name for word in strange for name in difflib.get_close_matches(word, known, 1, 0.7)]
    return f"; did you mean {alike[0]}?" if alike else ""


def explained(error: Exception, known: Collection[str] = ()) -> Exception:
    """The exception to raise in place of ``error``: an InputError if the user's input is at fault.

    Args:
        error: What a library raised.
        known: Names of settings, to suggest one for a misspelled one.

    Returns:
        The InputError (or OSError) that a library wrapped; an InputError with the message of jsonargparse or
        Lightning; or ``error`` itself, which is then a bug.
    """
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    # While parsing, jsonargparse tries to open values as files: those OSErrors do not matter.
    kinds = InputError if isinstance(error, ArgumentError) else (InputError, OSError)
    for cause in causes:
        if isinstance(cause, kinds):
            return cause
    if isinstance(error, ArgumentError) or _WRAPPED in str(error):
        message = decisive(str(error))
        return InputError(message + _suggested(message, known))
    frames = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, UnicodeDecodeError) and any(name.startswith("jsonargparse.") for name in frames):
        return InputError(f"config: it is not UTF-8 ({error}); save it as UTF-8 text")
    if _TOO_SMALL.search(str(error)):
        return InputError(f"the images are too small for the backbone: raise data.image_size ({error})")
    if frames[-1].startswith("lightning."):
        return InputError(str(error))  # Lightning raised it itself: a wrong argument or a missing package
    return error
