"""The conditions of a speed measurement: processor, versions, number of threads."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu")


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of installed packages; by default of those that run networks."""
    found = {"python": platform.python_version()}
    for name in packages or _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """The processor or GPU, and torch's number of threads, as plain JSON."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": device.type, "processor": name, "threads": torch.get_num_threads()}


def _processor() -> str:
    """Processor model and instruction set, since compiled code may not run on another."""
    details: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            details.setdefault(key.strip(), value.strip())
    except OSError:
        return platform.processor() or platform.machine()
    model = " ".join(details[key] for key in ("model name", "cpu family", "model") if key in details)
    return f"{model or platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
