"""Several processes: a layer whose batch is that of all, and averages of plain layers' statistics."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .layer import BatchRenorm, processes


class SyncBatchRenorm(BatchRenorm):
    """Batch Renormalization of the batches of all processes as one, like ``torch.nn.SyncBatchNorm``.

    The batches may differ in size, and be empty. On one process, and outside a process group, it is the
    plain layer. Parameters as ``BatchRenorm``; input (N, C, ...) of 2 to 5 dimensions.

    Attributes:
        process_group: the processes that share a batch; None for all.
    """

    _dimensions = (2, 3, 4, 5)

    def __init__(self, *args: Any, process_group: dist.ProcessGroup | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.process_group = process_group

    def _group(self) -> dist.ProcessGroup | None:
        return processes(self.process_group)


@torch.no_grad()
def average_statistics_across_ranks(module: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Average the running statistics of a module's Batch Renormalization layers over all processes.

    For plain layers under ``DistributedDataParallel``: each process moves its statistics towards its own
    batch, and DDP would continue with those of rank 0, which with class-grouped batches has seen other
    classes. Call it after each step (as ``RenormScheduleCallback`` does): all started equal, so this
    averages the updates. DDP's broadcast of buffers then changes nothing; ``broadcast_buffers=False``
    saves it.

    Averages deviations, not variances, and moving gradient statistics, in one collective for all layers.
    Does nothing outside a process group or on one process, and to ``SyncBatchRenorm`` layers.

    Args:
        module: searched for layers.
        group: the processes; None for all.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return
    layers = [
        m for m in module.modules() if isinstance(m, BatchRenorm) and not isinstance(m, SyncBatchRenorm)
    ]
    if not layers:
        return
    stats = [layer.averaged_stats() for layer in layers]
    flat = torch.cat([vector for of_layer in stats for vector in of_layer])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    for layer, of_layer in zip(layers, stats, strict=True):
        size = layer.num_features * len(of_layer)
        layer.set_averaged_stats(list(flat[:size].chunk(len(of_layer))))
        flat = flat[size:]
