"""The exception for unusable input, and one-line reasons from other exceptions."""


class InputError(ValueError):
    """Something that the user gave is unusable.

    The message is one line that names the thing and the remedy. The command line prints it and exits with
    code 2; the server answers with a 4xx status. Any other exception that escapes is a bug and keeps its
    traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type's name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
