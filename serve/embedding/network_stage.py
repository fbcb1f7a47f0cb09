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


def load_bundle(settings: Settings, meanwhile: str = "eager") -> Bundle:
    """The settings' model, ready to serve.

    Args:
        settings: What the operator decided.
        meanwhile: The backend to take for "auto" until the fastest is known.

    Raises:
        InputError: There is no such bundle, or the backend cannot run it.
    """
    bundle = Bundle.load(settings.bundle, settings.device, trust_code=settings.trust_code)
    return optimized(settings, bundle, meanwhile)


def optimized(settings: Settings, bundle: Bundle, meanwhile: str) -> Bundle:
    """The model on the settings' backend; for "auto" the fastest, if it is known, else ``meanwhile``.

    Raises:
        InputError: The backend cannot run it.
    """
    if settings.backend == "auto" and meanwhile == "plain":
        return bundle
    torch.set_num_threads(settings.threads_of_network())  # for which the backend is chosen
    return bundle.optimize(settings.backend, workers=settings.network_workers, meanwhile=meanwhile)


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
