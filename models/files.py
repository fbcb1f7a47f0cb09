"""Atomic writes."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` to write to; it replaces ``path`` when the block ends.

    A reader sees either the old or the new file, never a part of one. Where the block raises, the old file
    stays and the temporary one is deleted. Threads, processes and machines may write at once: each has a
    temporary file of its own, and the last to finish wins. A killed process leaves a file ``<name>.*.tmp``.
    """
    fresh = path.with_name(f"{path.name}.{uuid4().hex[:12]}.tmp")
    try:
        yield fresh
        fresh.replace(path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise
