"""Averages over processes, and of weights over time, that average the deviation, not its square."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.swa_utils import AveragedModel

from .layer import BatchRenorm, SyncBatchRenorm, processes


@contextmanager
def averaging_deviations(model: nn.Module, average: nn.Module) -> Iterator[None]:
    """Let ``running_var`` of both modules' layers hold the deviation, so that averages are of deviations.

    Wrap the update of ``average``, from a ``model`` in training, of parameters *and buffers*; the model's
    statistics come out bit for bit as they went in. The paper's inference averages mu and sigma in this way.
    """
    of_model, of_average = (
        [m for m in module.modules() if isinstance(m, BatchRenorm)] for module in (model, average)
    )
    saved = [layer.running_var.clone() for layer in of_model]
    for layer in of_model + of_average:
        layer.running_var.add_(layer.eps).sqrt_()
    try:
        yield
    finally:
        for layer, before in zip(of_model, saved, strict=True):
            layer.running_var.copy_(before)
        for layer in of_average:
            layer.running_var.square_().sub_(layer.eps)


class RenormAveragedModel(AveragedModel):
    """``torch.optim.swa_utils.AveragedModel`` that averages deviations; give it ``use_buffers=True``."""

    def update_parameters(self, model: nn.Module) -> None:
        """Take the model's present parameters and statistics into the average."""
        with averaging_deviations(model, self.module):
            super().update_parameters(model)


@torch.no_grad()
def average_statistics_across_ranks(module: nn.Module) -> None:
    """Average the running statistics of a module's Batch Renormalization layers over all processes.

    For plain layers under ``DistributedDataParallel``: each process moves its statistics towards its own
    batch, and DDP would continue with those of rank 0, which with class-grouped batches has seen other
    classes. Call it after each step (as ``RenormScheduleCallback`` does): all started equal, so this
    averages the updates. DDP's broadcast of buffers then changes nothing; ``broadcast_buffers=False``
    saves it.

    Averages deviations, not variances, and moving gradient statistics, in one collective for all layers.
    Does nothing outside a process group or on one process, and to ``SyncBatchRenorm`` layers.
    """
    layers = [
        m for m in module.modules() if isinstance(m, BatchRenorm) and not isinstance(m, SyncBatchRenorm)
    ]
    if not layers or (group := processes()) is None:
        return
    stats = [layer.averaged_stats() for layer in layers]
    flat = torch.cat([vector for of_layer in stats for vector in of_layer])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    for layer, of_layer in zip(layers, stats, strict=True):
        size = layer.num_features * len(of_layer)
        layer.set_averaged_stats(list(flat[:size].chunk(len(of_layer))))
        flat = flat[size:]
