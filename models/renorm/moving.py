"""Moving averages in place of the two batch statistics that batch normalization's gradient subtracts.

The gradient of the paper, dx = gamma r / std * (dy - mean(dy) - x_hat * mean(dy * x_hat)), depends on the other
examples of the batch through its two means. After Yan et al. (arXiv 2001.06838, ICLR 2020) they are
replaced by moving averages over batches, this one among them.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class GradientStatistics(NamedTuple):
    """A layer's moving averages of its gradient statistics, changed in place by each backward pass.

    Attributes:
        mean: of the mean of dy, (C,).
        projection: of the mean of dy * x_hat, (C,).
        batches: backward passes so far, a tensor without dimensions.
        momentum: weight of a batch once ``1 / momentum`` of them have passed; until then all weigh the
            same, so that the first gradient is the paper's. A tensor without dimensions.
    """

    mean: Tensor
    projection: Tensor
    batches: Tensor
    momentum: Tensor

    def update(self, mean: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a batch; a channel whose statistics are not finite keeps its averages.

        Args:
            mean: of dy over this batch, (C,).
            projection: mean of dy * x_hat over this batch, (C,).

        Returns:
            The averages of both with this batch in them, (C,) each.
        """
        weight = torch.maximum(self.batches.add_(1).reciprocal(), self.momentum)
        for average, value in ((self.mean, mean), (self.projection, projection)):
            average.addcmul_((value - average).nan_to_num_(0.0, 0.0, 0.0), weight)
        return self.mean.to(mean.dtype), self.projection.to(mean.dtype)
