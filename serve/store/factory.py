"""Which approximate indexes a collection may have: known kinds, sane sizes, and one was built on trial.

FAISS takes many more strings than it survives. Some of its failures end the process or take all its memory,
so an index is first built over random rows in a process of its own.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from serve.store.approximate import EXACT, FaissIndex, build, parse
from serve.store.protocol import MOST_EFFORT, StoreError

_log = logging.getLogger(__name__)

_CODES = r"(?:Flat|SQ(?:4|6|8|fp16|bf16)|PQ(?P<pieces>\d+)(?:x(?:4(?:fs)?|8))?)"
_KINDS = re.compile(
    r"(?:(?:PCAR?|RR)(?P<reduced>\d+),)?"
    r"(?:(?P<graph>HNSW(?P<links>\d+))|"
    rf"(?:IVF(?P<lists>\d+)(?:_HNSW(?P<list_links>\d+))?,)?{_CODES}(?:,RFlat|,Refine\(SQ8\))?)",
    re.ASCII,
)
_MOST_LISTS = 65_536
_MOST_LINKS = 256
# Of the trial. It keeps few lists, because each needs rows to train it.
_ROWS = 512
_LISTS = 4
_SECONDS = 120.0  # codes of 8 bits take ten on a busy machine
_MEMORY = 4 * 2**30


def check(text: str, dim: int) -> None:
    """Refuses an index that is not known to work.

    Args:
        text: FAISS factory string, perhaps with an effort; see `approximate.parse`.
        dim: Length of a vector.

    Raises:
        StoreError: It is of another kind, a size is out of range, or FAISS could not build it on trial.
    """
    factory, effort = parse(text)
    if factory == EXACT and effort is None:
        return
    known = _KINDS.fullmatch(factory)
    if known is None:
        raise StoreError(f"The store builds no index {text[:60]!r}; use Flat, HNSW32 or IVF1024,SQ8")
    sizes = (
        ("links", 2, _MOST_LINKS),
        ("list_links", 2, _MOST_LINKS),
        ("lists", 1, _MOST_LISTS),
        ("pieces", 1, dim),
        ("reduced", 1, dim),
    )
    for name, least, most in sizes:
        given = known[name]
        if given is not None and not (len(given) < 10 and least <= int(given) <= most):
            raise StoreError(f"Index {text[:60]!r} has {given[:20]} where {least} to {most} may stand")
    takes = "nprobe" if known["lists"] else "ef" if known["graph"] == factory else "nothing"
    if effort is not None and not (f",{takes}=" in text and 1 <= effort <= MOST_EFFORT):
        raise StoreError(
            f"Index {text!r}: {factory} takes {takes} to say how far a search looks (1 to {MOST_EFFORT})"
        )
    _try_out(re.sub(r"IVF\d+", lambda found: f"IVF{min(_LISTS, int(found[0][3:]))}", factory), dim)


@functools.cache
def _try_out(factory: str, dim: int) -> None:
    """Builds and searches such an index in a process of its own, once for each."""
    command = [sys.executable, "-m", __name__, factory, str(dim)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    try:
        subprocess.run(  # noqa: S603  (the factory string is one of `_KINDS`)
            command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=True
        )
    except subprocess.SubprocessError as error:
        said = str(getattr(error, "stderr", None) or "").strip().rpartition("\n")[2]
        _log.warning("the trial of index %s failed: %s; %s", factory, error, said)
        raise StoreError(
            f"FAISS makes no index {factory!r} of vectors of {dim} numbers; use Flat, HNSW32 or IVF1024,SQ8"
        ) from None


def _limit_memory() -> None:
    """Lets this process map `_MEMORY` more bytes than it has mapped by now."""
    if sys.platform == "linux":
        import resource

        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY, mapped + _MEMORY))


def main(factory: str, dim: int) -> None:
    """Builds, reads and searches an index of random rows; how the process ends says whether that works."""
    _limit_memory()
    vectors = np.random.default_rng(0).standard_normal((_ROWS, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.faiss"
        if not build(factory, vectors, path, threads=1, stop=lambda: False):
            raise SystemExit("it was not built")
        rows = FaissIndex.load(path, factory, vectors).search(vectors[:4], 10)[1]
    if (rows < 0).any():
        raise SystemExit("a search found too few rows")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
