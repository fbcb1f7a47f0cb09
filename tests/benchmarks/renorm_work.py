"""What bench_renorm.py times: modules beside Batch Renormalization, and one call of each kind of work."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class PlainFormula(nn.Module):
    """The paper's formulas in tensor operations, differentiated by autograd: what everybody writes
    first."""

    def __init__(self, channels: int, dimensions: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mu", torch.zeros(channels))
        self.register_buffer("sigma", torch.ones(channels))
        self.shape = (1, -1, *[1] * (dimensions - 2))
        self.over = [i for i in range(dimensions) if i != 1]

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, self.over, correction=0)
        std = (var + 1e-5).sqrt()
        with torch.no_grad():
            r = (std / self.sigma).clamp(1 / 3, 3)
            d = ((mean - self.mu) / self.sigma).clamp(-5, 5)
            self.mu.lerp_(mean, 0.01)
            self.sigma.lerp_(std, 0.01)
        x_hat = (x - mean.view(self.shape)) / std.view(self.shape) * r.view(self.shape) + d.view(self.shape)
        return x_hat * self.weight.view(self.shape) + self.bias.view(self.shape)


def training(layer: nn.Module, x: Tensor, autocast: bool) -> Callable[[], None]:
    """One forward and backward pass."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    device = x.device.type
    if autocast:
        x = x.detach().bfloat16().requires_grad_()
    gradient = torch.randn_like(x)

    def work() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            y = layer(x)
        y.backward(gradient)
        x.grad = None
        layer.zero_grad(set_to_none=True)

    return work


def evaluation(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    layer = layer.eval()

    def work() -> None:
        with torch.inference_mode():
            layer(x)

    return work


def train_step(network: nn.Module, x: Tensor, autocast: bool) -> Callable[[], None]:
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    label = torch.arange(len(x), device=x.device) % 10
    device = x.device.type

    def work() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(network(x), label)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


class WithRelu(nn.Module):
    """A layer that does the ReLU, too, and the sum with a second input if there is one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, relu=True)


class Residual(nn.Module):
    """What ends a residual block: the layer, the sum, the ReLU."""

    def __init__(self, layer: nn.Module, together: bool) -> None:
        super().__init__()
        self.layer, self.together = layer, together

    def forward(self, x: Tensor) -> Tensor:
        if self.together:
            return self.layer(x, residual=x, relu=True)
        y = self.layer(x)
        y += x
        return y.relu_()
