"""Second stage (``encode_core``): one forward pass over a micro-batch, in the network's thread."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import Bundle


def encode_core(bundle: Bundle, images: Sequence[Tensor]) -> NDArray[np.float32]:
    """Embed decoded images.

    Args:
        bundle: The model.
        images: uint8 tensors of shape (channels, size, size).

    Returns:
        float32 of shape (len(images), dim), rows of length 1.
    """
    with torch.inference_mode():
        batch = bundle.preprocess.normalize(torch.stack(list(images)))
        vectors: NDArray[np.float32] = bundle.embed_tensor(batch).float().cpu().numpy()
        return vectors
