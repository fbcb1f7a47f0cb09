"""Compiles the fused kernels for this machine, keeps the library in the user's cache, and loads it."""

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import torch

_log = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent

# Not contracted: the backward pass computes some numbers of the forward pass again and must find the same.
_FLAGS = [
    *("-std=c++20", "-O3", "-fPIC", "-shared", "-Wno-psabi"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
]
_CAPABILITIES = {
    "AVX2": ["-mavx2", "-mfma"],
    "AVX512": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
        "-mprefer-vector-width=512",
    ],
}
_COMPILERS = ("g++", "c++", "clang++")


def load_library() -> None:
    """Load the kernels from the cache, compiled first where it has none that fits.

    The cache is never trusted: a file that is not what was once written is passed over, and so is one that
    cannot be loaded, as when it was made on a machine with newer libraries. Where nothing can be written,
    the library is made for this process alone.

    Raises:
        RuntimeError: one line, when there is no compiler or it fails.
        OSError: no folder for temporary files can be written either.
    """
    # Loaded before, by whatever copy of this package: names of operators are one to a process.
    if hasattr(torch.ops.batch_renorm_native, "forward"):
        return
    unusable = []
    for library in _cached():
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            unusable.append(library)
        else:
            return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        try:
            library = compile_library(unusable)
        except OSError as error:
            library = _compile(Path(temporary), f"for this process alone ({error})")
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError as error:
            raise RuntimeError(f"the fused kernels cannot be loaded: {error}") from error


def compile_library(unusable: Collection[Path] = ()) -> Path:
    """The library's path in the cache, compiled first (about twenty seconds) where it is not there yet.

    Args:
        unusable: libraries of the cache that cannot be loaded here.

    Raises:
        RuntimeError: one line, when there is no compiler or it fails.
        OSError: the cache cannot be written.
    """

    def usable() -> Path | None:
        return next((library for library in _cached() if library not in unusable), None)

    if (library := usable()) is not None:
        return library
    _compiler()
    import fcntl  # not on Windows

    folder = _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes may ask at once
        return usable() or _compile(folder, "once")


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


def _cached() -> Iterator[Path]:
    """The libraries for this machine that are whole: each has its checksum in its name."""
    for library in sorted(_folder().glob(f"{_key()}-*.so")):
        try:
            whole = library.stem.endswith(_checksum(library))
        except OSError:
            continue
        if whole:
            yield library


def _checksum(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()[:16]


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [[name] for name in _COMPILERS]:
        if shutil.which(command[0]) is not None:
            return command
    raise RuntimeError("no C++ compiler found: install g++, or name one in CXX (layers work without it, too)")


def _compile(folder: Path, how_often: str) -> Path:
    compiler, torch_folder = _compiler(), Path(torch.__file__).parent
    _log.warning("compiling the Batch Renorm kernels: about 20 seconds, %s", how_often)
    unfinished = folder / f"{os.getpid()}.unfinished"
    command = [
        *(*compiler, *_flags(), "-isystem", str(torch_folder / "include"), str(_SOURCES / "renorm.cpp")),
        *("-o", str(unfinished), f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
    if run.returncode != 0:
        errors = [line for line in run.stderr.splitlines() if "error" in line] or [run.stderr[-200:]]
        raise RuntimeError(f"{compiler[0]} could not compile the fused kernels: {errors[0].strip()}")
    return unfinished.replace(folder / f"{_key()}-{_checksum(unfinished)}.so")


def _flags() -> list[str]:
    return [*_FLAGS, *_CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), [])]
