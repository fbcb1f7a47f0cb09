"""The meaning of ``trainer.precision: auto``."""

from pathlib import Path
from typing import Any

import torch
import yaml

from models.errors import InputError

HALF, FULL = "bf16-mixed", "32-true"


def resolve(trainer: Any, checkpoint: str | None, *, training: bool) -> tuple[str | None, str | None]:
    """The precision that "auto" stands for: in training the fastest, or that of the run that resumes.

    Returns:
        The precision, None if a plugin of the trainer decides; and for training the reason, for printing.
    """
    if "precision" in str(trainer.plugins).lower():
        return None, None
    if not training:
        return FULL, None
    chosen, reason = fastest(trainer.accelerator)
    if checkpoint and (begun := begun_with(checkpoint)) is not None:
        reason = "as the run began" if begun == chosen else f"as the run began, although {reason}"
        chosen = begun
    return chosen, reason


def fastest(accelerator: Any) -> tuple[str, str]:
    """The precision that trains fastest on one of Lightning's accelerators without loss of accuracy.

    Returns:
        bf16-mixed if the device has instructions for bfloat16, else 32-true; and the reason, for printing.
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
    return FULL, f"whether {accelerator} has fast bfloat16 is unknown"


def _processor_has_bfloat16() -> bool:
    """Whether there are native instructions: oneDNN emulates bfloat16 several times slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
    return bool(native and torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def begun_with(checkpoint: str) -> str | None:
    """The precision that a checkpoint's run began with, read from its config.yaml; None if there is none.

    Raises:
        InputError: the config is broken.
    """
    file = Path(checkpoint).parent.parent / "config.yaml"
    try:
        begun = yaml.safe_load(file.read_text(encoding="utf-8"))["trainer"].get("precision")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: cannot be read ({' '.join(str(error).split())[:100]})") from error
    return FULL if begun is None else str(begun)
