"""What matters in jsonargparse's messages, which list every type that a value could have had."""

import re

# How a message begins about a value that fits none of several types.
WRAPPED = "Does not validate against any of the Union subtypes"

_NOISE = re.compile(
    f"{WRAPPED}|Subtypes:|Errors:|Given value type:|Not a valid subclass of|Subclass types expect one of:"
    "|a class path \\(|a dict with|Expected a path but .* either not accessible or invalid"
)
_KEY = re.compile(r'Parser key "(.+)":\s*(.*)')
_CLASS = re.compile(r"Problem with given class_path '(.+)':\s*(.*)")
_CALLABLE = re.compile(r"Type .* expects a function or a callable class: (.*)\. Got value: .*")
_EXPECTED = re.compile(r"Expected an? <class '(.+)'>")
_GIVEN = re.compile(r"Given value: (?:NestedArg\(key='.*', val=)?(.*?)\)?$")


def decisive(message: str) -> str:
    """The setting that a message of jsonargparse is about, and what is wrong with it, in one line."""
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
            types.append(found[1].removeprefix("NoneType"))
        elif found := _GIVEN.match(text):
            given = found[1]
        else:
            reasons[text] = None
    if not reasons:
        expected = " or ".join(dict.fromkeys(name for name in types if name))
        reasons[f"expected {expected}, found {given}"] = None
    return ": ".join([*([".".join(keys)] if keys else []), "; ".join(reasons)])
