"""Activation checkpointing: the recomputed forward pass uses the correction of the first one.

Checkpointing runs a layer's forward pass twice. By the second time the running statistics have moved: r and
d would not be those that made the output, the gradients would be wrong, and the statistics would move twice.
"""

from collections import deque

import torch
from torch import Tensor

# Calls of one layer that are kept; of more between a forward pass and its recomputation the oldest are lost.
_REMEMBERED_CALLS = 32


def recomputing() -> bool:
    """Whether this thread is inside a backward pass, where a forward pass is a recomputation.

    Every kind of checkpointing (reentrant or not, torch's or another library's) runs the second forward pass
    from autograd's engine.
    """
    return torch._C._current_graph_task_id() != -1


def may_be_recomputed() -> bool:
    """Whether this forward pass may be the first one of a checkpoint.

    Reentrant checkpointing disables gradients, the other kind intercepts saved tensors.
    """
    if not torch.is_grad_enabled():
        return True
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


class CallMemory:
    """The corrections of a layer's calls that may be recomputed, in any order, (C,) each.

    Several calls may wait (a shared layer, several micro-batches). A recomputed call has the input of the
    first one, so its batch statistics identify it.
    """

    def __init__(self) -> None:
        self._calls: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_REMEMBERED_CALLS)
        self._recalled = 0

    def __len__(self) -> int:
        return len(self._calls)

    def remember(self, mean: Tensor, r: Tensor, d: Tensor) -> None:
        """Keep a call's correction; drop the old ones once as many have been recomputed as were kept."""
        if self._recalled >= len(self._calls):
            self._calls.clear()
            self._recalled = 0
        self._calls.append((mean, r, d))

    def recall(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """The r and d of the remembered call whose mean is nearest; at least one is remembered."""
        self._recalled += 1
        means, r, d = (torch.stack(vectors) for vectors in zip(*self._calls, strict=True))
        nearest = ((means - mean) / std).square().sum(1).argmin().unsqueeze(0)  # stays on the device
        return r.index_select(0, nearest)[0], d.index_select(0, nearest)[0]
