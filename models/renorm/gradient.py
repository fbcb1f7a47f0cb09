"""The two means that batch normalization's gradient subtracts, and what may stand in for them.

The gradient of the paper is dx = gamma r / std * (dy - mean(dy) - x_hat * mean(dy * x_hat)): through its two
means it depends on the other examples of the batch. Over several processes the means are those of all their
batches.

With ``gradient_statistics="moving"``, after Yan et al. (arXiv 2001.06838, ICLR 2020), they are moving
averages over batches, this one among them, and in both places x_hat is what the layer puts out before gamma
and beta, z = r x_hat + d: the input as (nearly) the running statistics normalize it. The batch's own x_hat
would have no component along what tells this batch from others.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, all_reduce


class MovingAverages(NamedTuple):
    """A layer's moving averages of its gradient statistics, changed in place by each backward pass.

    Attributes:
        mean: of the mean of dy, (C,).
        projection: of the mean of dy * z, (C,).
        batches: backward passes so far, a tensor without dimensions.
        momentum: weight of a batch once ``1 / momentum`` of them have passed; until then all weigh the
            same. A tensor without dimensions.
    """

    mean: Tensor
    projection: Tensor
    batches: Tensor
    momentum: Tensor

    def update(self, mean: Tensor, projection: Tensor) -> None:
        """Take in a batch's two means, (C,) each; where they are not finite the averages stay."""
        weight = torch.maximum(self.batches.add_(1).reciprocal(), self.momentum)
        for average, value in ((self.mean, mean), (self.projection, projection)):
            average.addcmul_((value - average).nan_to_num_(0.0, 0.0, 0.0), weight)


class GradientRule(NamedTuple):
    """Which batch the two means are of.

    Attributes:
        moving: averages over batches that replace them, or None.
        values: values per channel where it is not the size of the input: with a mask, or over all processes.
            A tensor without dimensions.
        synchronized: whether to sum over the processes.
        group: these processes; None for all.
    """

    moving: MovingAverages | None = None
    values: Tensor | None = None
    synchronized: bool = False
    group: ProcessGroup | None = None

    def means(
        self, total: Tensor, projection: Tensor, size: int, r: Tensor, d: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What to subtract, a constant and a multiple of x_hat, from this process's sums of dy and of
        dy * x_hat over so many values a channel.
        """
        if self.synchronized:
            both = torch.stack([total, projection])
            all_reduce(both, ReduceOp.SUM, self.group)
            total, projection = both.unbind()
        values = size if self.values is None else self.values
        mean, projection = total / values, projection / values
        if self.moving is None:
            return mean, projection
        self.moving.update(mean, torch.addcmul(d * mean, r, projection))
        # mean + z * projection, with z = r x_hat + d.
        return torch.addcmul(self.moving.mean, d, self.moving.projection), r * self.moving.projection
