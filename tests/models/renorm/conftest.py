"""The naive twin of the paper's algorithm, in float64, differentiated by autograd."""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from models.renorm import autograd, native, statistics


class Twin:
    """Algorithm 1 of arXiv 1702.03275, written as it stands there. Keeps sigma itself."""

    def __init__(self, channels: int, eps: float, momentum: float, rmax: float, dmax: float) -> None:
        self.mu = torch.zeros(channels, dtype=torch.float64)
        self.sigma = torch.full((channels,), (1.0 + eps) ** 0.5, dtype=torch.float64)
        self.eps, self.momentum, self.rmax, self.dmax = eps, momentum, rmax, dmax
        self.gamma = torch.ones(channels, dtype=torch.float64, requires_grad=True)
        self.beta = torch.zeros(channels, dtype=torch.float64, requires_grad=True)
        # of gradient_statistics="moving"
        self.gradient_moments = torch.zeros(4, channels, dtype=torch.float64)
        self.batches = 0

    def statistics(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        flat = x.movedim(1, -1)
        flat = flat.reshape(-1, flat.shape[-1]) if mask is None else flat[mask]
        mean = flat.mean(0)
        return mean, (self.eps + (flat - mean).square().mean(0)).sqrt()

    def correct(self, mean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            r = (sigma / self.sigma).clamp(1 / self.rmax, self.rmax)
            d = ((mean - self.mu) / self.sigma).clamp(-self.dmax, self.dmax)
            self.mu += self.momentum * (mean - self.mu)
            self.sigma += self.momentum * (sigma - self.sigma)
        return r, d

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        shape = (1, -1, *[1] * (x.dim() - 2))
        mean, sigma = self.statistics(x, mask)
        r, d = self.correct(mean, sigma)
        x_hat = (x - mean.view(shape)) / sigma.view(shape) * r.view(shape) + d.view(shape)
        return self.gamma.view(shape) * x_hat + self.beta.view(shape)

    @torch.no_grad()
    def moving(
        self, x: Tensor, dy: Tensor, momentum: float, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step with moving gradient statistics, channel by channel: y, and the gradients of x, gamma and
        beta. Padding has gradients and enters them, as it does the paper's; nothing is subtracted from it.
        """
        mask = torch.ones_like(x[:, 0], dtype=torch.bool) if mask is None else mask
        means, sigmas = self.statistics(x, mask)
        rs, ds = self.correct(means, sigmas)
        self.batches += 1
        weight = max(momentum, 1 / self.batches)
        y, dx, d_gamma, d_beta = torch.empty_like(x), torch.empty_like(x), [], []
        for c, (mean, sigma, r, d, gamma) in enumerate(zip(means, sigmas, rs, ds, self.gamma, strict=True)):
            x_hat, g, values = r * (x[:, c] - mean) / sigma + d, dy[:, c], int(mask.sum())
            y[:, c] = gamma * x_hat + self.beta[c]
            d_gamma.append((g * x_hat).sum())
            d_beta.append(g.sum())
            now = torch.stack([d_beta[c] / values, d_gamma[c] / values, d, r**2 + d**2])
            dy_mean, product, z, square = (1 - weight) * self.gradient_moments[:, c] + weight * now
            self.gradient_moments[:, c] = torch.stack([dy_mean, product, z, square])
            # The normal equations of a fit by a constant and z.
            matrix, right = torch.tensor([[1, z], [z, square]]), torch.stack([dy_mean, product])
            constant, slope = torch.linalg.solve(matrix, right)
            subtracted = constant + slope * x_hat
            dx[:, c] = gamma * r / sigma * torch.where(mask, g - subtracted, g)
        return y, dx, torch.stack(d_gamma), torch.stack(d_beta)


@pytest.fixture
def twin() -> Callable[..., Twin]:
    def make(
        channels: int, eps: float = 1e-3, momentum: float = 0.1, rmax: float = 3.0, dmax: float = 5.0
    ) -> Twin:
        return Twin(channels, eps, momentum, rmax, dmax)

    return make


TORCH_ROUTES = ["torch's kernels", "plain operations"]


@pytest.fixture(scope="session")
def compiled() -> None:
    """The fused kernels, compiled once and kept in the user's cache."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("the fused kernels need a C++ compiler")
    native.compile_library()


@pytest.fixture
def fused(compiled: None) -> Iterator[None]:
    """Layers take the fused kernels."""
    native.build()
    yield
    native.disable()


@pytest.fixture(params=[*TORCH_ROUTES, "fused"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ways through the layer on a CPU."""
    if request.param == "fused":
        request.getfixturevalue("fused")
    if request.param == "plain operations":
        for module in (autograd, statistics):
            monkeypatch.setattr(module, "has_kernels", lambda _: False)
    return str(request.param)
