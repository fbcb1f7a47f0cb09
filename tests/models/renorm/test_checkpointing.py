"""Activation checkpointing: statistics move once, and the second forward pass corrects as the first did."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from models.renorm import BatchRenorm2d


class Network(nn.Module):
    """A layer used twice, so that two calls wait for recomputation at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.norm = BatchRenorm2d(3, momentum=0.5, rmax=10.0, dmax=10.0, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu() * 3
        return self.norm(self.second(x)).sigmoid()


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_and_statistics_are_those_without_checkpointing(reentrant) -> None:
    torch.manual_seed(0)
    plain = Network()
    again = copy.deepcopy(plain)
    for step in range(3):
        x = torch.randn(8, 3, 6, 6) * (1 + step)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        plain(a).square().sum().backward()
        checkpoint(again, b, use_reentrant=reentrant).square().sum().backward()
        torch.testing.assert_close(b.grad, a.grad)
        for p, q in zip(plain.parameters(), again.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-5, atol=1e-5)
        assert torch.equal(again.norm.running_mean, plain.norm.running_mean)
        assert torch.equal(again.norm.running_var, plain.norm.running_var)
        assert torch.equal(again.norm.num_batches_tracked, plain.norm.num_batches_tracked)
    assert len(again.norm._memory) <= 2  # old calls are dropped


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_waiting_micro_batches_in_any_order(reentrant, order) -> None:
    torch.manual_seed(1)
    plain, xs = Network(), [torch.randn(4, 3, 5, 5, requires_grad=True) for _ in range(3)]
    again = copy.deepcopy(plain)
    expected = [plain(x) for x in xs]
    outputs = [checkpoint(again, x, use_reentrant=reentrant) for x in xs]
    for i in order:
        want = torch.autograd.grad(expected[i].square().sum(), plain.norm.weight)[0]
        again.zero_grad()
        outputs[i].square().sum().backward()
        torch.testing.assert_close(again.norm.weight.grad, want)
    assert torch.equal(again.norm.running_mean, plain.norm.running_mean)


def test_segments() -> None:
    torch.manual_seed(2)
    plain = nn.Sequential(*[nn.Sequential(nn.Conv2d(3, 3, 1), BatchRenorm2d(3), nn.ReLU()) for _ in range(4)])
    again = copy.deepcopy(plain)
    x = torch.randn(4, 3, 4, 4)
    plain(x).square().sum().backward()
    checkpoint_sequential(again, 2, x, use_reentrant=False).square().sum().backward()
    for p, q in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)
    for p, q in zip(plain.buffers(), again.buffers(), strict=True):
        assert torch.equal(p, q)


def test_a_layer_without_checkpointing_keeps_nothing() -> None:
    layer = BatchRenorm2d(3)
    layer(torch.randn(4, 3, 2, 2))
    assert len(layer._memory) == 0
    with torch.no_grad():  # may be the first pass of reentrant checkpointing; bounded
        for _ in range(100):
            layer(torch.randn(4, 3, 2, 2))
    assert len(layer._memory) <= 32
