"""Batch Renormalization over the batches of all processes, and what plain layers need among several."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .gradient import GradientRule
from .layer import BatchRenorm


class SyncBatchRenorm(BatchRenorm):
    """Batch Renormalization whose batch is that of all processes, as ``torch.nn.SyncBatchNorm`` is for
    BatchNorm.

    The batches may differ in size, and be empty. On one process, and outside of a process group, it is
    the plain layer. Parameters as ``BatchRenorm``; input (N, C, ...) of 2 to 5 dimensions.

    Attributes:
        process_group: the processes that share a batch; None for all.
    """

    _dimensions = (2, 3, 4, 5)

    def __init__(self, *args: Any, process_group: dist.ProcessGroup | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.process_group = process_group

    def _synchronizes(self) -> bool:
        if not (dist.is_available() and dist.is_initialized()):
            return False
        return dist.get_world_size(self.process_group) > 1

    def _check_values(self, x: Tensor) -> None:
        if not self._synchronizes():
            super()._check_values(x)

    def _kernels_take(self, x: Tensor, mask: Tensor | None, residual: Tensor | None) -> bool:
        return not self._synchronizes() and super()._kernels_take(x, mask, residual)

    def _batch_statistics(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        mean, std, count = super()._batch_statistics(x, mask)
        if not self._synchronizes():
            return mean, std, count
        values = mean.new_full((1,), x.numel() // x.shape[1]) if count is None else count.view(1).to(mean)
        # A process without values has no statistics; its share of none must not spoil the sum.
        own = torch.cat([*(torch.where(values > 0, v, 0.0) for v in (mean, std.square())), values])
        every = [torch.empty_like(own) for _ in range(dist.get_world_size(self.process_group))]
        dist.all_gather(every, own, self.process_group)
        means, seconds, counts = torch.split(torch.stack(every), [len(mean), len(mean), 1], dim=1)
        total = counts.sum()
        shares = counts / total
        mean = (shares * means).sum(0)
        # The squares hold epsilon once each, and so does their mean.
        std = (shares * (seconds + (means - mean).square())).sum(0).sqrt_()
        return mean, std, total

    def _gradient_rule(self, count: Tensor | None) -> GradientRule | None:
        if not self._synchronizes():
            return super()._gradient_rule(count)
        return GradientRule(self._moving_moments(), count, True, self.process_group)


@torch.no_grad()
def average_statistics_across_ranks(module: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Average the running statistics of a module's Batch Renormalization layers over all processes.

    For plain layers under ``DistributedDataParallel``: each process has moved its statistics towards its
    own batch, and DDP would go on with those of rank 0, which under class-grouped batches has seen other
    classes. Call it after each step (as ``RenormScheduleCallback`` does): all started equal, so this
    averages the updates. DDP's broadcast of buffers then changes nothing; ``broadcast_buffers=False``
    saves it.

    Deviations are averaged, not variances; so are moving gradient statistics. One collective for all
    layers. Does nothing outside of a process group or on one process. ``SyncBatchRenorm`` layers need it
    not.

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
    statistics = [vector for layer in layers for vector in layer.averageable()]
    flat = torch.cat(statistics)
    dist.all_reduce(flat, dist.ReduceOp.SUM, group)
    flat /= dist.get_world_size(group)
    averaged = iter(torch.split(flat, [len(vector) for vector in statistics]))
    for layer in layers:
        layer.set_averageable([next(averaged) for _ in layer.averageable()])
