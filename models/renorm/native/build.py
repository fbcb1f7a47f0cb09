"""Compiles and loads the fused kernels, when asked to."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch

_SOURCES = Path(__file__).parent

# Not contracted: the backward pass computes some numbers of the forward pass again and must find the same.
_FLAGS = [
    *("-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp", "-Wno-psabi"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
]
_CAPABILITIES = {
    "AVX2": ["-mavx2", "-mfma"],
    "AVX512": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
        "-mprefer-vector-width=512",
    ],
}


def library_path() -> Path:
    """Where the library for these sources, this torch and this kind of processor belongs.

    Under ``TORCH_EXTENSIONS_DIR``, else the user's cache folder.
    """
    key = hashlib.sha256(f"{torch.__version__} {_flags()}".encode())
    for source in sorted(_SOURCES.glob("*.[ch]*")):
        key.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cache / "torch_extensions")
    return folder / "batch_renorm" / f"{key.hexdigest()[:16]}.so"


def compile_library() -> Path:
    """The library's path, compiled first (about twenty seconds) where it is not there yet.

    Raises:
        RuntimeError: one line, when there is no compiler or it fails.
    """
    library = library_path()
    if library.exists():
        return library
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise RuntimeError(
            "no C++ compiler found: install g++, or name one in CXX (the layers work without it, too)"
        )
    import fcntl  # not on Windows, where there is no g++ either

    library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    torch_folder = Path(torch.__file__).parent
    with (library.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes may ask at once
        if library.exists():
            return library
        unfinished = library.with_suffix(f".{os.getpid()}")
        command = [
            *(compiler, *_flags(), "-isystem", str(torch_folder / "include"), str(_SOURCES / "renorm.cpp")),
            *("-o", str(unfinished), f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"),
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
        if run.returncode != 0:
            errors = [line for line in run.stderr.splitlines() if "error" in line] or [run.stderr[-200:]]
            raise RuntimeError(f"{compiler} could not compile the fused kernels: {errors[0].strip()}")
        unfinished.replace(library)
    return library


def _flags() -> list[str]:
    return [*_FLAGS, *_CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), [])]
