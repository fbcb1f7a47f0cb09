"""Files that are replaced whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside ``path`` to write to, which takes its place when the block ends.

    A reader finds the old or the new file whole. Where the block raises, the old one stays and the new one
    goes. Threads, processes and machines may do this at once: each has a file of its own, and the last one
    to end wins. A process that is killed leaves its file, whose name is that of ``path`` with an ending in
    ``.tmp``.
    """
    fresh = path.with_name(f"{path.name}.{uuid4().hex[:12]}.tmp")
    try:
        yield fresh
        fresh.replace(path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise
