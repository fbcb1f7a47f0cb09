"""Virtual batch normalization (Salimans et al. 2016, "Improved Techniques for Training GANs", section 3.5).

Each example is normalized by its own statistics and those of a reference batch, which is fixed at the start
of training. The reference passes through the network with every training batch: :class:`ReferenceBatch` puts
it in front, and the network removes it from the output.
"""

import torch
from torch import Tensor, nn


class VirtualBatchNorm(nn.Module):
    """Normalization by the statistics of a reference batch and of the example.

    In training the first `reference_size` = n rows of the input are the reference; its first and second
    moments weigh n/(n+1), those of the example 1/(n+1). In evaluation the reference's last moments are used,
    so an example's output depends on no other example.

    Args:
        num_features: channels, the second dimension.
        eps: added to the variance.
        reference_size: n, rows of the reference batch.

    Shape: (B, C) or (B, C, ...) → the same.
    """

    reference_mean: Tensor
    reference_square: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, reference_size: int = 32) -> None:
        super().__init__()
        self.eps = eps
        self.reference_size = reference_size
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("reference_mean", torch.zeros(num_features))
        self.register_buffer("reference_square", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize; in training gradients flow through the statistics, as in the paper."""
        inner = tuple(range(2, x.ndim))
        shape = (1, -1, *[1] * len(inner))
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean, square = self.reference_mean.to(values.dtype), self.reference_square.to(values.dtype)
        if self.training:
            reference = values[: self.reference_size]
            dims = (0, *inner)
            mean, square = reference.mean(dims), reference.square().mean(dims)
            self.reference_mean.copy_(mean.detach())
            self.reference_square.copy_(square.detach())
        share = 1 / (self.reference_size + 1)
        own_mean = values.mean(inner, keepdim=True) if inner else values
        own_square = values.square().mean(inner, keepdim=True) if inner else values.square()
        mixed_mean = share * own_mean + (1 - share) * mean.view(shape)
        mixed_square = share * own_square + (1 - share) * square.view(shape)
        scale = (mixed_square - mixed_mean.square()).clamp_min(0).add(self.eps).rsqrt()
        out = (values - mixed_mean) * scale * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)


class ReferenceBatch(nn.Module):
    """Keeps the reference batch of a network and puts it in front of every training batch.

    The first training batch (repeated if it is smaller) becomes the reference. Inference does not need it.

    Args:
        size: rows n of the reference batch.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.images: Tensor | None = None

    def extend(self, images: Tensor) -> Tensor:
        """Put the reference before a batch (B, C, H, W) → (n + B, C, H, W)."""
        if self.images is None:
            repeats = -(-self.size // len(images))
            self.images = images.detach().repeat(repeats, 1, 1, 1)[: self.size].clone()
        self.images = self.images.to(images)
        return torch.cat([self.images, images])

    def get_extra_state(self) -> Tensor:
        """The reference while training, so that a resumed run goes on with the same one; else empty."""
        return torch.empty(0) if self.images is None or not self.training else self.images

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        self.images = state if state.numel() else None
