"""Runs `kindred embed` in a child process and kills it at a moment of the caller's choice.

    python tests/app/embed_kills.py --kills 3 --seed 0 OPTION...

Prints, as JSON, how many runs were killed and what each left behind. The children are forked from one process
that has everything imported, so that a run takes no longer than its work. The options are those of a run that
has not begun; a last run, which nobody disturbs, completes the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import app.embed.predict  # noqa: F401 - which the command line imports only when it is called
from app.cli import main


def attempt(options: list[str], seconds: float | None) -> int | None:
    """One run; killed after so many seconds, if any. Returns its exit code, None where it was killed."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main(options))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def left_behind(folder: Path) -> dict[str, int]:
    """How many whole shards and how many half-written ones are there."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return {
        "shards": sum(name.endswith(".parquet") for name in names),
        "half": sum(name.endswith(".tmp") for name in names),
    }


def run(options: list[str], folder: Path, kills: int, seed: int) -> dict[str, object]:
    """Kills runs at moments spread over the time that a whole one takes, then lets one finish."""
    rng = random.Random(seed)
    start = time.perf_counter()
    scratch = f"--out={folder}-timed"
    if attempt([*options, scratch], None) != 0:
        raise SystemExit("the undisturbed run failed")
    whole = time.perf_counter() - start
    left = []
    while len(left) < kills:
        code = attempt([*options, f"--out={folder}"], rng.uniform(0, whole))
        if code is None:
            left.append(left_behind(folder))
        elif code != 0:
            raise SystemExit(f"a resumed run ended with exit code {code}")
        elif left:
            break  # complete before it could be killed again
        else:
            shutil.rmtree(folder)
            whole /= 2
    code = attempt([*options, f"--out={folder}"], None)
    return {"kills": len(left), "left": left, "whole_seconds": whole, "code": code}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    known, rest = parser.parse_known_args()
    sys.argv = sys.argv[:1]
    print(json.dumps(run(rest, known.folder, known.kills, known.seed)))
