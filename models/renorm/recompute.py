"""Activation checkpointing: a recomputed forward pass uses the correction of the first one.

Checkpointing runs a layer's forward pass twice. The second time the running statistics have already
moved, so r and d would differ from those that made the output, and the gradients would be wrong; the
statistics would also move twice.
"""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

# More calls of one layer than this between a forward pass and its recomputation fall back to the newest.
_REMEMBERED_CALLS = 32


class Record(NamedTuple):
    """What one forward pass used; (C,) each."""

    mean: Tensor
    std: Tensor
    r: Tensor
    d: Tensor


def recomputing() -> bool:
    """Whether this thread is inside a backward pass, where a forward pass is a recomputation.

    It holds for every kind of checkpointing (reentrant or not, torch's or another library's), because all
    run the second forward pass from autograd's engine.
    """
    return torch._C._current_graph_task_id() != -1


def may_be_recomputed() -> bool:
    """Whether the present forward pass looks like a checkpoint's first one.

    Reentrant checkpointing disables gradients, the other kind intercepts saved tensors.
    """
    if not torch.is_grad_enabled():
        return True
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


class CallMemory:
    """The corrections of the calls of one layer that may be run again.

    Several calls may wait (a shared layer, several micro-batches), and they may be recomputed in any
    order. A recomputed call has the input of the first one and so its batch statistics: by these it is
    recognised.
    """

    def __init__(self) -> None:
        self._records: deque[Record] = deque(maxlen=_REMEMBERED_CALLS)
        self._recalled = 0

    def __len__(self) -> int:
        return len(self._records)

    def remember(self, record: Record) -> None:
        """Keep a call's correction; drop the old ones once as many have been recomputed as were kept."""
        if self._recalled >= len(self._records):
            self._records.clear()
            self._recalled = 0
        self._records.append(record)

    def recall(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """The r and d of the remembered call whose batch statistics are nearest; at least one is
        remembered.
        """
        self._recalled += 1
        if len(self._records) == 1:
            return self._records[0].r, self._records[0].d
        distance = torch.stack([((a.mean - mean) / std).square().sum() for a in self._records])
        nearest = distance.argmin().unsqueeze(0)  # stays on the device
        r = torch.stack([a.r for a in self._records]).index_select(0, nearest)[0]
        d = torch.stack([a.d for a in self._records]).index_select(0, nearest)[0]
        return r, d
