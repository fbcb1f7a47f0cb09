"""The one exception that means "the input is at fault, not the program"."""


class InputError(ValueError):
    """Something the user gave is unusable.

    The message is one line that names the thing and the remedy. The command line prints it and exits with
    code 2; the server answers with a 4xx. Whatever else escapes is a bug of ours, with its traceback.
    """
