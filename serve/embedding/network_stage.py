"""The model in the server: loading it for speed, and the second stage (``encode_core``), one forward pass
over a micro-batch in the network's thread.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import Bundle
from serve.settings import Settings
from serve.threads import set_policy


def load_bundle(settings: Settings, backend: str | None = None) -> Bundle:
    """The settings' model, ready to serve: thread counts are set first, because a backend is chosen for them.

    Args:
        settings: What the operator decided.
        backend: Take this one instead of the settings' "auto", which may measure for minutes.

    Raises:
        InputError: There is no such bundle, or the backend cannot run it.
    """
    set_policy(settings.threads_of_network())
    bundle = Bundle.load(settings.bundle, settings.device, trust_code=settings.trust_code)
    chosen = backend if backend is not None and settings.backend == "auto" else settings.backend
    return bundle if chosen == "plain" else bundle.optimize(chosen, workers=settings.network_workers)


def encode_core(bundle: Bundle, images: Sequence[Tensor]) -> NDArray[np.float32]:
    """Embed decoded images.

    Args:
        bundle: The model.
        images: uint8 tensors of shape (channels, size, size).

    Returns:
        float32 of shape (len(images), dim), rows of length 1.
    """
    vectors: NDArray[np.float32] = bundle.embed_pixels(torch.stack(list(images))).numpy(force=True)
    return vectors
