"""The precision of a training run whose config leaves it to the machine."""

from pathlib import Path
from typing import Any

import torch
import yaml

from models.errors import InputError

HALF, FULL = "bf16-mixed", "32-true"


def fastest(accelerator: Any) -> tuple[str, str]:
    """The precision that trains fastest here without losing accuracy, and why.

    Args:
        accelerator: Lightning's word for the device; "auto" is a GPU where there is one.

    Returns:
        bf16-mixed where the device multiplies bfloat16 by instructions of its own, else 32-true; and a
        reason to print.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.get_device_capability() >= (8, 0):
            return HALF, f"{name} has fast bfloat16"
        return FULL, f"{name} has no fast bfloat16"
    if accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available()):
        if _processor_has_bfloat16():
            return HALF, "this processor has fast bfloat16"
        return FULL, "this processor has no fast bfloat16"
    return FULL, f"nothing is known of {accelerator} and bfloat16"


def _processor_has_bfloat16() -> bool:
    """Whether by native instructions: oneDNN also emulates it, several times slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
    return bool(native and torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def begun_with(checkpoint: str) -> str | None:
    """The precision of the run that a checkpoint is of, by the config beside it; None where there is none.

    Raises:
        InputError: that config is broken.
    """
    file = Path(checkpoint).parent.parent / "config.yaml"
    try:
        begun = yaml.safe_load(file.read_text(encoding="utf-8"))["trainer"].get("precision")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: cannot be read ({' '.join(str(error).split())[:100]})") from error
    return FULL if begun is None else str(begun)
