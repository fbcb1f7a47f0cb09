"""The two means that batch normalization's gradient subtracts, and what may stand in for them.

The gradient of the paper is dx = gamma r / std * (dy - mean(dy) - x_hat * mean(dy * x_hat)): through its two
means it depends on the other examples of the batch. Over several processes the means are those of all their
batches.

What it subtracts is the least-squares fit of dy by a constant and x_hat, over the batch.
``gradient_statistics="moving"`` fits over the recent batches together, this one among them, and by the output
before gamma and beta, z = r x_hat + d: the input as (nearly) the running statistics normalize it. Moving
averages in the gradient are of Yan et al. (arXiv 2001.06838, ICLR 2020). They take the mean of z**2 for 1.
Where the running statistics lag it is not, and the scale of the weights runs away.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, all_reduce


class MovingMoments(NamedTuple):
    """A layer's moving averages over batches, changed in place by each backward pass.

    Attributes:
        moments: of the means of dy, dy * z, z and z**2, (4, C).
        batches: backward passes so far, a tensor without dimensions.
        momentum: weight of a batch once ``1 / momentum`` of them have passed; until then all weigh the
            same. A tensor without dimensions.
    """

    moments: Tensor
    batches: Tensor
    momentum: Tensor

    def fit(self, mean: Tensor, projection: Tensor, r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a batch's means of dy and dy * z, and fit dy; averages of what is not finite stay.

        Returns:
            constant and slope, (C,) each: dy is near constant + slope * z.
        """
        weight = torch.maximum(self.batches.add_(1).reciprocal(), self.momentum)
        now = torch.stack([mean, projection, d, torch.addcmul(d * d, r, r)])
        self.moments.addcmul_((now - self.moments).nan_to_num_(0.0, 0.0, 0.0), weight)
        dy, product, z, square = self.moments
        slope = torch.addcmul(product, z, dy, value=-1) / torch.addcmul(square, z, z, value=-1)
        return torch.addcmul(dy, slope, z, value=-1), slope


class GradientRule(NamedTuple):
    """Which batch the two means are of.

    Attributes:
        moving: averages over batches that they are fitted to, or None.
        values: values per channel where it is not the size of the input: with a mask, or over all processes.
            A tensor without dimensions.
        synchronized: whether to sum over the processes.
        group: these processes; None for all.
    """

    moving: MovingMoments | None = None
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
        constant, slope = self.moving.fit(mean, torch.addcmul(d * mean, r, projection), r, d)
        return torch.addcmul(constant, d, slope), r * slope  # constant + slope * z, with z = r x_hat + d
