"""The two statistics that batch normalization's gradient subtracts, and what may stand in for them.

The gradient of the paper is dx = gamma r / std * (dy - mean(dy) - x_hat * mean(dy * x_hat)): through its two
means it depends on the other examples of the batch. Over several processes the means are those of all their
batches.

With ``gradient_statistics="moving"``, after Yan et al. (arXiv 2001.06838, ICLR 2020), they are moving
averages over batches, this one among them, and in both places x_hat is what the layer puts out before gamma
and beta, z = r x_hat + d: the input as (nearly) the running statistics normalize it. The batch's own x_hat
would have no component along what tells this batch from others.
"""

from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, all_reduce

from .statistics import on_host


class MovingAverages(NamedTuple):
    """A layer's moving averages of its gradient statistics, changed in place by each backward pass.

    Attributes:
        mean: of the mean of dy, (C,).
        projection: of the mean of dy * z, (C,).
        batches: backward passes so far, a tensor without dimensions.
        momentum: weight of a batch once ``1 / momentum`` of them have passed; until then all weigh the
            same, so that the first gradient is the paper's. A tensor without dimensions.
    """

    mean: Tensor
    projection: Tensor
    batches: Tensor
    momentum: Tensor

    def update(self, mean: Tensor, projection: Tensor) -> None:
        """Take in a batch's two means, (C,) each; a channel where they are not finite keeps its
        averages.
        """
        batches = self.batches.add_(1)
        # One sum of products is finite only if all of both vectors are.
        if on_host(mean) and isfinite(torch.dot(mean, projection).item()):
            share = max(1 / batches.item(), self.momentum.item())
            self.mean.lerp_(mean, share)
            self.projection.lerp_(projection, share)
            return
        weight = torch.maximum(batches.reciprocal(), self.momentum)
        for average, value in ((self.mean, mean), (self.projection, projection)):
            average.addcmul_((value - average).nan_to_num_(0.0, 0.0, 0.0), weight)


class GradientRule(NamedTuple):
    """Where the two means come from when it is not this process's batch alone.

    Attributes:
        moving: the averages that replace them, or None.
        values: values per channel over all processes, a tensor without dimensions; None for this process's.
        group: the processes to sum over; None means all.
    """

    moving: MovingAverages | None = None
    values: Tensor | None = None
    group: ProcessGroup | None = None

    def means(
        self, total: Tensor, projection: Tensor, values: int | Tensor, r: Tensor, d: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What to subtract: a constant and a multiple of x_hat, (C,) each.

        Args:
            total: this process's sum of dy, (C,).
            projection: this process's sum of dy * x_hat, (C,).
            values: this process's values per channel.
            r: correction of this batch, (C,).
            d: likewise.
        """
        if self.values is not None:
            both = torch.stack([total, projection])
            all_reduce(both, ReduceOp.SUM, self.group)
            total, projection = both.unbind()
            values = self.values
        total, projection = total / values, projection / values
        if self.moving is None:
            return total, projection
        self.moving.update(total, torch.addcmul(d * total, r, projection))
        # mean + z * projection, with z in terms of x_hat.
        mean, projection = self.moving.mean, self.moving.projection
        return torch.addcmul(mean, d, projection), r * projection
