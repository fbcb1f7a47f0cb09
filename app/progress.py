"""The progress bar of long commands."""

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def counting_progress(**options: Any) -> Progress:
    """A bar with a description, a count and the time remaining; ``options`` are those of rich's Progress."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, **options)
