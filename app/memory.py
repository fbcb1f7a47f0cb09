"""Sizes of memory, and a setting of glibc's allocator."""

import ctypes
import os
import re
import sys

from models.errors import InputError

# mallopt's parameters, from glibc's malloc.h, and the largest value that its int takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1
_CHOSEN_BY = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def keep_freed_memory() -> bool:
    """Let glibc keep the memory that a training step frees for the next step.

    By default glibc maps blocks above 32 MiB anew and unmaps them when they are freed, so that the kernel
    clears the pages of every large activation in every step. With this setting the process stays as large as
    its largest step. `tests/benchmarks/bench_memory.py` measures both.

    Returns:
        Whether it was set. It is not with other C libraries, or if the environment chooses an allocator or
        its settings (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_, GLIBC_TUNABLES or LD_PRELOAD).
    """
    if not sys.platform.startswith("linux") or any(os.environ.get(name) for name in _CHOSEN_BY):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(parameter, _LARGEST) for parameter in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))


def parse_size(text: str) -> int:
    """Bytes of a size such as 512MB, 2GB or 1.5GiB; units are powers of 1024.

    Raises:
        InputError: not a positive number with an optional unit.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    try:
        size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    except ValueError:
        size = 0
    if size <= 0:
        raise InputError(f"{text!r} is not a size; write 512MB or 2GB")
    return size
