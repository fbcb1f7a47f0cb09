"""Networks whose layers take in the ReLU and the residual sum after them."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

from models.renorm import BatchRenorm2d, convert_to_batch_renorm, fuse_batch_renorm


class Block(nn.Module):
    """Every kind of sum and ReLU, and some that must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(6)])
        self.norms = nn.ModuleList([BatchRenorm2d(3, momentum=0.1) for _ in range(6)])
        self.relu = nn.ReLU(inplace=True)

    def branch(self, i: int, x: Tensor) -> Tensor:
        return self.norms[i](self.convolutions[i](x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.branch(0, x))
        y = self.branch(1, x)
        y += x
        x = self.relu(y)
        x = functional.relu(x + self.branch(2, x))
        x = x + self.branch(3, x)  # a sum alone
        kept = self.branch(4, x)
        x = kept.relu() * kept  # used twice: stays
        y = (x * 2).add_(self.branch(5, x))  # changes the other in place: stays
        return torch.relu(y) + 1


def calls(module: nn.Module) -> list[set[str]]:
    return [set(n.kwargs) for n in module.graph.nodes if n.op == "call_module" and "norm" in str(n.target)]


def test_what_follows_is_taken_in_and_nothing_else() -> None:
    both = {"residual", "relu"}
    assert calls(fuse_batch_renorm(Block())) == [{"relu"}, both, both, {"residual"}, set(), set()]


@pytest.mark.parametrize("kernels", ["torch", "fused"])
def test_outputs_gradients_and_statistics_stay(request, kernels) -> None:
    if kernels == "fused":
        request.getfixturevalue("fused")
    torch.manual_seed(0)
    plain = Block()
    twin = copy.deepcopy(plain)
    fused = fuse_batch_renorm(twin)
    for _ in range(3):
        x = torch.randn(8, 3, 5, 5)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, expected = fused(a), plain(b)
        y.square().mean().backward()
        expected.square().mean().backward()
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    for (name, p), (other, q) in zip(twin.named_parameters(), plain.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3)
    for p, q in zip(twin.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-4)


def test_a_residual_network_keeps_its_files(fused) -> None:
    network = convert_to_batch_renorm(resnet18(num_classes=3))
    keys = set(network.state_dict())
    network.bn1.eval()
    modes = [m.training for m in network.modules()]
    graph = fuse_batch_renorm(network)
    assert set(graph.state_dict()) == keys
    assert [m.training for m in network.modules()] == modes
    assert {p.data_ptr() for p in graph.parameters()} == {p.data_ptr() for p in network.parameters()}
    with_both = [n for n in graph.graph.nodes if set(n.kwargs) == {"residual", "relu"}]
    assert len(with_both) == 8
    assert not [n for n in graph.graph.nodes if "relu" in str(n.target)]
    copied = copy.deepcopy(graph)
    saved = io.BytesIO()
    torch.save(graph.state_dict(), saved)
    saved.seek(0)
    copied.load_state_dict(torch.load(saved, weights_only=True))
    x = torch.randn(2, 3, 32, 32)
    graph(x).sum().backward()
    assert network.conv1.weight.grad is not None


def test_what_a_graph_cannot_show_is_refused() -> None:
    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.dropout(x, 0.5, self.training)

    with pytest.raises(ValueError, match="in training"):
        fuse_batch_renorm(Drops())
