"""Freed memory is kept for the next step: counted in page faults, in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

BLOCK, ROUNDS = 64 << 20, 20
PROGRAM = f"""
import resource, sys, torch
from app.memory import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
for _ in range({ROUNDS}):
    torch.empty({BLOCK}, dtype=torch.uint8).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    torch.empty({BLOCK}, dtype=torch.uint8).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")


def run(mode: str, **environment: str) -> tuple[str, int]:
    """What keep_freed_memory returned, and how many pages were faulted in by twenty blocks of 64 MiB."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "LD_PRE"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode],
        env={**plain, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    returned, faults = done.stdout.split()
    return returned, int(faults)


@glibc
def test_blocks_are_mapped_once_instead_of_every_time() -> None:
    pages = BLOCK // os.sysconf("SC_PAGE_SIZE")
    # Transparent huge pages, where they are always on, fault in 512 pages at once.
    _, without = run("leave")
    returned, kept = run("keep")
    assert returned == "True"
    assert kept < pages
    assert kept < without / 4


@glibc
def test_a_setting_of_the_environment_stays() -> None:
    assert run("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
