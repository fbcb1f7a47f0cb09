"""Fused kernels for CPUs in C++: a layer's forward pass in one call, its backward pass in another.

Once turned on, layers take them for float32, float64 and bfloat16 input on a CPU, and torch's operations for
everything else. ``build()`` turns them on; ``try_build()``, which Kindred's training calls, does so where it
can. Importing ``models.renorm`` compiles nothing unless the environment variable ``KINDRED_RENORM_NATIVE``
is 1; where it is 0, ``try_build()`` leaves the kernels off.

The library is compiled for this machine and kept in the user's cache, under a name that holds its checksum.
"""

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

__all__ = ["build", "compile_library", "disable", "enabled", "try_build"]

_log = logging.getLogger(__name__)
_SWITCH = "KINDRED_RENORM_NATIVE"
_SOURCES = Path(__file__).parent
# Not contracted: the backward pass computes some numbers of the forward pass again and must find the same.
_FLAGS = "-std=c++20 -O3 -fPIC -shared -Wno-psabi -ffp-contract=off -fno-math-errno -fno-trapping-math"
_CAPABILITIES = {
    "AVX2": "-mavx2 -mfma",
    "AVX512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512",
}

# None until somebody turns the kernels on or off.
_state: dict[str, bool | None] = {"enabled": None}


def build() -> None:
    """Load the kernels and turn them on for this process; compile them first if the cache has none that fit.

    That takes about twenty seconds, once for a machine. Where the cache cannot be written, the library is
    made for this process alone.

    Raises:
        RuntimeError: one line, when there is no compiler, it fails, or what it made cannot be loaded.
        OSError: the folder for temporary files cannot be written either.
    """
    # Another copy of this package may have loaded them: names of operators are one to a process.
    if not hasattr(torch.ops.batch_renorm_native, "forward"):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            try:
                library = compile_library()
                if _failure(library) is not None:  # as when it was made on a machine with newer libraries
                    library.unlink()
                    library = compile_library()
            except OSError as error:
                library = _compile(Path(temporary), f"for this process alone ({error})")
            if (failure := _failure(library)) is not None:
                raise RuntimeError(f"the fused kernels cannot be loaded: {failure}")
    _state["enabled"] = True


def try_build() -> None:
    """``build()`` unless the kernels have been turned on or off; logs the reason where it fails."""
    if _state["enabled"] is not None or os.environ.get(_SWITCH) == "0":
        return
    try:
        build()
    except (RuntimeError, OSError, ImportError) as error:
        _log.warning("Batch Renorm goes without its fused kernels: %s", error)
        disable()


def disable() -> None:
    """Turn the kernels off for this process; ``build()`` turns them on again."""
    _state["enabled"] = False


def enabled() -> bool:
    """Whether layers take the kernels."""
    return _state["enabled"] is True


def compile_library() -> Path:
    """The library's path in the cache, compiled first (about twenty seconds) where it is not there yet.

    Raises:
        RuntimeError: one line, when there is no compiler or it fails.
        OSError: the cache cannot be written.
    """
    if (library := _cached()) is not None:
        return library
    _compiler()
    import fcntl  # not on Windows

    folder = _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes may ask at once
        return _cached() or _compile(folder, "once")


def _failure(library: Path) -> OSError | None:
    """Load a library; the error where that fails."""
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError as error:
        return error
    return None


def _folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cache / "torch_extensions") / "batch_renorm"


def _key() -> str:
    """What a library is made for: these sources, this torch, this kind of processor and of system."""
    system = f"{platform.machine()} {' '.join(platform.libc_ver())}"
    key = hashlib.sha256(f"{torch.__version__} {_flags()} {system}".encode())
    for source in sorted(_SOURCES.glob("*.[ch]*")):
        key.update(source.read_bytes())
    return key.hexdigest()[:16]


def _cached() -> Path | None:
    """A library for this machine that is whole: its checksum is the one in its name."""
    for library in sorted(_folder().glob(f"{_key()}-*.so")):
        try:
            if library.stem.endswith(_checksum(library)):
                return library
        except OSError:
            continue
    return None


def _checksum(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()[:16]


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["g++"], ["c++"], ["clang++"]]:
        if shutil.which(command[0]) is not None:
            return command
    raise RuntimeError("no C++ compiler found: install g++, or name one in CXX (layers work without it, too)")


def _flags() -> list[str]:
    return f"{_FLAGS} {_CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), '')}".split()


def _compile(folder: Path, how_often: str) -> Path:
    """Compile into a folder; the library is whole when it gets its name."""
    compiler, torch_folder = _compiler(), Path(torch.__file__).parent
    _log.warning("compiling the Batch Renorm kernels: about 20 seconds, %s", how_often)
    unfinished = folder / f"{os.getpid()}.unfinished"
    command = [*compiler, *_flags(), "-isystem", str(torch_folder / "include"), str(_SOURCES / "renorm.cpp")]
    command += ["-o", str(unfinished), f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
    if run.returncode != 0:
        errors = [line for line in run.stderr.splitlines() if "error" in line] or [run.stderr[-200:]]
        raise RuntimeError(f"{compiler[0]} could not compile the fused kernels: {errors[0].strip()}")
    return unfinished.replace(folder / f"{_key()}-{_checksum(unfinished)}.so")


if os.environ.get(_SWITCH) == "1":
    build()
