"""What the fused kernels do beyond the other routes, and how they are turned on."""

import copy
import importlib

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.renorm import BatchRenorm1d, BatchRenorm2d, batch_renorm, native

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def close(a: Tensor, b: Tensor) -> None:
    largest = float(b.detach().abs().max()) if b.numel() else 0.0
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(largest, 1.0))


def both(layer: nn.Module, shape: tuple[int, ...], layout: torch.memory_format, **settings: object):
    """Outputs and gradients of one input, by the fused kernels and by the others."""
    torch.manual_seed(7)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    x = (torch.randn(shape) * 2 + 3).contiguous(memory_format=layout)
    residual, dy = torch.randn(shape), torch.randn(shape)
    results = []
    for fuse in (True, False):
        (native.build if fuse else native.disable)()
        twin = copy.deepcopy(layer)
        a, b = x.clone().requires_grad_(), residual.clone().requires_grad_()
        y = twin(a, residual=b if "residual" in settings else None, relu="relu" in settings)
        y.backward(dy)
        results.append([y, a.grad, b.grad, twin.weight.grad, twin.bias.grad, *twin.buffers()])
    return results


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("settings", [["relu"], ["residual"], ["relu", "residual"]], ids="+".join)
@pytest.mark.parametrize("kind", ["batch", "moving"])
def test_relu_and_residual_equal_the_operations_apart(fused, layout, settings, kind) -> None:
    layer = BatchRenorm2d(21, rmax=1.1, dmax=0.2, gradient_statistics=kind)
    for a, b in zip(*both(layer, (6, 21, 5, 7), layout, **dict.fromkeys(settings)), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 3, 90, 95), torch.contiguous_format),  # planes larger than a piece
        ((300, 2, 3, 5), torch.contiguous_format),  # several pieces of many planes
        ((40, 300, 5, 5), torch.channels_last),  # several chunks of rows, wider than a tile
        ((37, 40, 13, 13), torch.channels_last),
        ((4, 1, 9, 9), torch.channels_last),
        ((7, 5, 1, 1), torch.contiguous_format),
    ],
)
def test_every_way_of_cutting_the_input(fused, shape, layout) -> None:
    for a, b in zip(*both(BatchRenorm2d(shape[1]), shape, layout, relu=None), strict=True):
        if a is not None:
            close(a, b)


def test_wide_rows(fused) -> None:
    for a, b in zip(*both(BatchRenorm1d(600), (130, 600), torch.contiguous_format), strict=True):
        if a is not None:
            close(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_do_not_depend_on_the_number_of_threads(fused, layout) -> None:
    x = torch.randn(16, 64, 12, 12).contiguous(memory_format=layout)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        a = x.clone().requires_grad_()
        y = BatchRenorm2d(64)(a, relu=True)
        y.backward(x.cos())
        results.append((y, a.grad))
    torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_statistics_are_exact_far_from_zero(fused, layout) -> None:
    x = (torch.randn(64, 3, 20, 20, dtype=torch.float64) + 1e3).float().contiguous(memory_format=layout)
    layer = BatchRenorm2d(3, momentum=1.0, eps=0.0)
    layer(x)
    torch.testing.assert_close(layer.running_mean.double(), x.double().mean((0, 2, 3)), rtol=1e-7, atol=0)
    variance = x.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-5, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("adds", [False, True])
def test_gradcheck(fused, layout, relu, adds) -> None:
    """With limits at which r and d are 1 and 0, so that finite differences do not move them."""
    torch.manual_seed(3)
    layer = BatchRenorm2d(3, momentum=0.0, rmax=1.0, dmax=0.0, dtype=torch.float64)
    x, residual = (
        torch.randn(4, 3, 2, 2, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
        for _ in range(2)
    )

    def run(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        added = residual if adds else None
        y = torch.func.functional_call(
            layer, {"weight": weight, "bias": bias}, (x,), {"residual": added, "relu": relu}
        )
        return y if adds else y + residual

    weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, residual, weight, bias))
    assert torch.autograd.gradgradcheck(run, (x, residual, weight, bias))


def test_nothing_is_hidden_from_what_follows(fused) -> None:
    """Values that are not numbers pass a ReLU, forwards and backwards, as they do torch's."""
    x = torch.randn(8, 3, 4, 4)
    x[0, 1, 0, 0] = torch.nan
    layer = BatchRenorm2d(3)
    a = x.requires_grad_()
    y = layer(a, relu=True)
    y.sum().backward()
    assert y[:, 1].isnan().all()
    assert y[:, [0, 2]].isfinite().all()
    assert layer.weight.grad[1].isnan()


def test_monitor_counts_the_same(fused) -> None:
    x, shares = torch.randn(32, 8) * torch.linspace(0.1, 9, 8) + 2, []
    for turn_on in (native.build, native.disable):
        turn_on()
        layer = BatchRenorm1d(8, rmax=2.0, dmax=1.5)
        layer.monitor = True
        layer(x)
        shares.append(layer.clipped.tolist())
    assert shares[0] == shares[1]
    assert 0 < shares[0][0] < 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(fused, reentrant) -> None:
    torch.manual_seed(5)
    # Without a bias: its gradient before a normalization is rounding alone.
    plain = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), BatchRenorm2d(3, momentum=0.5), nn.Sigmoid())
    again = copy.deepcopy(plain)
    x = torch.randn(8, 3, 6, 6)
    for _ in range(2):
        plain(x.requires_grad_()).square().sum().backward()
        checkpoint(again, x, use_reentrant=reentrant).square().sum().backward()
    for p, q in zip(plain.parameters(), again.parameters(), strict=True):
        close(p.grad, q.grad)
    for p, q in zip(plain.buffers(), again.buffers(), strict=True):
        close(p, q)


def test_autograd_hears_of_changed_statistics(fused) -> None:
    layer = BatchRenorm2d(3)
    layer.frozen = True
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    y = layer(x)
    layer.frozen = False
    layer(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_code_takes_its_own_way(fused) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]):
        graphs.append(graph.graph)
        return graph.forward

    torch._dynamo.reset()
    torch.compile(BatchRenorm2d(3), backend=backend, fullgraph=True)(torch.randn(2, 3, 4, 4), relu=True)
    assert len(graphs) == 1
    assert not [n for n in graphs[0].nodes if "batch_renorm_native" in str(n.target)]


def test_vectors_of_another_length_are_refused(fused) -> None:
    x, three, four = torch.randn(5, 4), torch.zeros(3), torch.zeros(4)
    with pytest.raises(RuntimeError, match="vector of 4"):
        batch_renorm(x, three, three, training=True)
    with pytest.raises(RuntimeError, match="vector of 4"):
        batch_renorm(x, four, four + 1, weight=three, bias=three, training=True)


def test_nothing_is_turned_on_unasked(compiled, monkeypatch) -> None:
    for asked in (True, False):
        if asked:
            monkeypatch.setenv("KINDRED_RENORM_NATIVE", "1")
        else:
            monkeypatch.delenv("KINDRED_RENORM_NATIVE")
        assert importlib.reload(native).enabled() is asked


def test_no_compiler_is_one_line(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler found[^\n]*$"):
        native.compile_library()
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_fails_is_one_line(monkeypatch, tmp_path) -> None:
    compiler = tmp_path / "bad++"
    compiler.write_text("#!/bin/sh\necho 'renorm.cpp:1: error: no' >&2\necho more >&2\nexit 1\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    with pytest.raises(RuntimeError, match=r"could not compile[^\n]*error: no$"):
        native.compile_library()
