"""The naive twin of the paper's algorithm, in float64, differentiated by autograd."""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from models.renorm import cpu, gradient, native, statistics


class Twin:
    """Algorithm 1 of arXiv 1702.03275, written as it stands there. Keeps sigma itself."""

    def __init__(self, channels: int, eps: float, momentum: float, rmax: float, dmax: float) -> None:
        self.mu = torch.zeros(channels, dtype=torch.float64)
        self.sigma = torch.full((channels,), (1.0 + eps) ** 0.5, dtype=torch.float64)
        self.eps, self.momentum, self.rmax, self.dmax = eps, momentum, rmax, dmax
        self.gamma = torch.ones(channels, dtype=torch.float64, requires_grad=True)
        self.beta = torch.zeros(channels, dtype=torch.float64, requires_grad=True)
        # of gradient_statistics="moving"
        self.gradient_mean = torch.zeros(channels, dtype=torch.float64)
        self.gradient_projection = torch.zeros(channels, dtype=torch.float64)
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

    def moving(self, x: Tensor, dy: Tensor, momentum: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step with moving gradient statistics: y and the gradients of x, gamma and beta."""
        shape, over = (1, -1, *[1] * (x.dim() - 2)), [i for i in range(x.dim()) if i != 1]
        with torch.no_grad():
            mean, sigma = self.statistics(x, None)
            r, d = self.correct(mean, sigma)
            normal = (x - mean.view(shape)) / sigma.view(shape)
            x_hat = normal * r.view(shape) + d.view(shape)
            y = self.gamma.view(shape) * x_hat + self.beta.view(shape)
            self.batches += 1
            weight = max(momentum, 1 / self.batches)
            self.gradient_mean += weight * (dy.mean(over) - self.gradient_mean)
            self.gradient_projection += weight * ((dy * normal).mean(over) - self.gradient_projection)
            subtracted = self.gradient_mean.view(shape) + normal * self.gradient_projection.view(shape)
            dx = (self.gamma * r / sigma).view(shape) * (dy - subtracted)
        return y, dx, (dy * x_hat).sum(over), dy.sum(over)


@pytest.fixture
def twin() -> Callable[..., Twin]:
    def make(
        channels: int, eps: float = 1e-3, momentum: float = 0.1, rmax: float = 3.0, dmax: float = 5.0
    ) -> Twin:
        return Twin(channels, eps, momentum, rmax, dmax)

    return make


TORCH_ROUTES = ["small input", "large input", "arithmetic of a device"]


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
    """The ways through the layer on a CPU, each for input of any size."""
    if request.param == "fused":
        request.getfixturevalue("fused")
    monkeypatch.setattr(cpu, "_SMALL", 1 << 40 if request.param == "small input" else 0)
    if request.param == "arithmetic of a device":
        for module in (statistics, gradient):
            monkeypatch.setattr(module, "on_host", lambda _: False)
    return str(request.param)
