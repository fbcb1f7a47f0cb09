"""The progress bar of long commands, and a way to hide warnings meanwhile."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def counting_progress(**options: Any) -> Progress:
    """A bar with a description, a count and the time remaining; ``options`` are those of rich's Progress."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, **options)


@contextmanager
def without_warnings(logger: str | None) -> Iterator[None]:
    """Hide the warnings of a logger; None is the root logger."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
