"""The layers against the float64 twin of the paper: outputs, gradients, statistics over several steps."""

import pytest
import torch
from torch import Tensor

from models.renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, batch_renorm
from models.renorm import layer as layer_module

SHAPES = [
    (BatchRenorm1d, (9, 5), torch.contiguous_format),
    (BatchRenorm1d, (6, 5, 7), torch.contiguous_format),
    (BatchRenorm2d, (6, 5, 4, 3), torch.contiguous_format),
    (BatchRenorm2d, (6, 5, 4, 3), torch.channels_last),
    (BatchRenorm3d, (4, 5, 2, 3, 2), torch.contiguous_format),
    (BatchRenorm3d, (4, 5, 2, 3, 2), torch.channels_last_3d),
]
LIMITS = [(1.0, 0.0), (1.0, 0.5), (1.1, 0.0), (1.05, 0.1), (3.0, 5.0), (1e9, 1e9)]
IDS = ["nc", "ncl", "nchw", "nhwc", "ncdhw", "ndhwc"]


def error(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1.0))


@pytest.mark.parametrize(("kind", "shape", "layout"), SHAPES, ids=IDS)
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("affine", [True, False])
def test_steps_equal_the_paper(twin, route, kind, shape, layout, limits, dtype, affine) -> None:
    torch.manual_seed(0)
    layer = kind(5, eps=1e-3, momentum=0.1, affine=affine, rmax=limits[0], dmax=limits[1], dtype=dtype)
    reference = twin(5, rmax=limits[0], dmax=limits[1])
    if affine:
        with torch.no_grad():
            layer.weight.copy_(torch.randn(5))
            layer.bias.copy_(torch.randn(5))
            reference.gamma.copy_(layer.weight)
            reference.beta.copy_(layer.bias)
    bound = 1e-10 if dtype == torch.float64 else 1e-5
    for step in range(4):
        x = (torch.randn(shape, dtype=dtype) * (1 + step) + 0.7 * step).contiguous(memory_format=layout)
        dy = torch.randn(shape, dtype=dtype)
        x.requires_grad_()
        y = layer(x)
        assert y.dtype == dtype
        assert y.stride() == x.stride()
        parameters = [layer.weight, layer.bias] if affine else []
        ours = torch.autograd.grad(y, [x, *parameters], dy)
        twin_x = x.detach().double().requires_grad_()
        expected = reference(twin_x)
        theirs = torch.autograd.grad(expected, [twin_x, reference.gamma, reference.beta], dy.double())
        assert error(y, expected) <= bound
        for a, b in zip(ours, theirs, strict=False):
            assert error(a, b) <= bound
        assert error(layer.running_mean, reference.mu) <= bound
        assert error(layer.running_var, reference.sigma**2 - reference.eps) <= bound
    assert int(layer.num_batches_tracked) == 4


@pytest.mark.parametrize(("kind", "shape", "layout"), SHAPES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_moving_gradient_statistics_equal_their_twin(twin, route, kind, shape, layout, dtype) -> None:
    torch.manual_seed(1)
    settings = {"eps": 1e-3, "momentum": 0.1, "gradient_statistics": "moving", "gradient_momentum": 0.4}
    layer = kind(5, **settings, dtype=dtype)
    reference = twin(5)
    bound = 1e-10 if dtype == torch.float64 else 1e-5
    for step in range(5):
        x = (torch.randn(shape, dtype=dtype) + step).contiguous(memory_format=layout).requires_grad_()
        dy = torch.randn(shape, dtype=dtype) + 0.3
        y = layer(x)
        ours = (y, *torch.autograd.grad(y, [x, layer.weight, layer.bias], dy))
        for a, b in zip(ours, reference.moving(x.detach().double(), dy.double(), 0.4), strict=True):
            assert error(a, b) <= bound
    assert error(layer.gradient_moments, reference.gradient_moments) <= bound


def test_moving_statistics_of_one_batch_are_the_papers(route) -> None:
    torch.manual_seed(2)
    layers = [
        BatchRenorm2d(3, gradient_statistics="batch"),
        BatchRenorm2d(3, gradient_statistics="moving", gradient_momentum=1),
    ]
    for step in range(3):
        x, dy = 2 * torch.randn(8, 3, 4, 4) + step, torch.randn(8, 3, 4, 4) + 0.3
        gradients = []
        for layer in layers:
            a = x.clone().requires_grad_()
            layer(a).backward(dy)
            gradients.append(a.grad)
        assert error(gradients[1], gradients[0]) <= 1e-5


def test_nothing_of_the_scale_is_left_on_average(route) -> None:
    """However far the running statistics lag: the gradient neither grows nor shrinks the weights for long."""
    torch.manual_seed(3)
    kept = {"momentum": 0.0, "rmax": 100.0, "dmax": 100.0, "eps": 0.0, "dtype": torch.float64}
    layer = BatchRenorm1d(1, gradient_statistics="moving", gradient_momentum=0.02, **kept)
    left = []
    for _ in range(2000):
        x = (3 * torch.randn(16, 1, dtype=torch.float64) + 1).requires_grad_()
        dy = 0.5 + 2 * x.detach() + torch.randn(16, 1, dtype=torch.float64)
        layer(x).backward(dy)
        left.append([x.grad.mean(), (x.grad * x.detach()).mean()])
    constant, along = torch.tensor(left[200:]).mean(0).abs()
    assert constant <= 0.02
    assert along <= 0.2  # dy itself has 20.5


@pytest.mark.parametrize("moving", [False, True])
def test_padding_stays_out_of_the_statistics(twin, moving) -> None:
    torch.manual_seed(3)
    kind = "moving" if moving else "batch"
    layer = BatchRenorm1d(
        5, eps=1e-3, momentum=0.1, rmax=1.2, dmax=0.3, gradient_statistics=kind, dtype=torch.float64
    )
    reference = twin(5, rmax=1.2, dmax=0.3)
    for _ in range(3):
        x = torch.randn(4, 5, 6, dtype=torch.float64)
        mask = torch.rand(4, 6) < 0.6
        dy = torch.randn_like(x)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y = layer(a, mask)
        ours = (y, *torch.autograd.grad(y, [a, layer.weight], dy))
        if moving:
            theirs = reference.moving(x, dy, 0.05, mask)[:3]
        else:
            expected = reference(b, mask)
            theirs = (expected, *torch.autograd.grad(expected, [b, reference.gamma], dy))
        for one, other in zip(ours, theirs, strict=True):
            assert error(one, other) <= 1e-10
        assert error(layer.running_mean, reference.mu) <= 1e-10
    garbage = torch.where(mask.unsqueeze(1), x, torch.nan)
    again = BatchRenorm1d(5, eps=1e-3, momentum=0.1, dtype=torch.float64)
    again(garbage, mask)
    assert torch.isfinite(again.running_mean).all()
    assert torch.isfinite(again.running_var).all()


def test_function_equals_the_layer(route) -> None:
    torch.manual_seed(4)
    x = torch.randn(8, 3, 4, 4)
    layer = BatchRenorm2d(3, rmax=1.1, dmax=0.1)
    mean, var = torch.zeros(3), torch.ones(3)
    for mask in (None, torch.rand(8, 4, 4) < 0.5):
        expected = layer(x, mask)
        y = batch_renorm(x, mean, var, layer.weight, layer.bias, training=True, rmax=1.1, dmax=0.1, mask=mask)
        assert torch.equal(y, expected)
        assert torch.equal(mean, layer.running_mean)
        assert torch.equal(var, layer.running_var)
    layer.eval()
    assert torch.equal(batch_renorm(x, mean, var, layer.weight, layer.bias), layer(x))


def test_the_function_takes_gamma_and_beta_each_alone(route) -> None:
    torch.manual_seed(6)
    x = torch.randn(8, 3, 4, 4)
    plain = batch_renorm(x, torch.zeros(3), torch.ones(3), training=True)
    vector = torch.tensor([0.5, 1.0, 2.0])
    along = vector.view(1, 3, 1, 1)
    scaled = batch_renorm(x, torch.zeros(3), torch.ones(3), vector, training=True)
    shifted = batch_renorm(x, torch.zeros(3), torch.ones(3), None, vector, training=True)
    torch.testing.assert_close(scaled, plain * along)
    torch.testing.assert_close(shifted, plain + along)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("route", ["torch's kernels"], indirect=True)
def test_gradcheck(route, layout, monkeypatch) -> None:
    torch.manual_seed(5)
    layer = BatchRenorm2d(3, momentum=0.0, rmax=1.05, dmax=0.1, dtype=torch.float64)
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    base = x.detach().clone()

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # r and d are constants of the gradient: finite differences must not move them either.
        mean, std = base.mean((0, 2, 3)), (base.var((0, 2, 3), correction=0) + layer.eps).sqrt()
        monkeypatch.setattr(layer_module, "correct", lambda *_: correction_at(mean, std))
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    def correction_at(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        sigma = (1 + layer.eps) ** 0.5
        return (std / sigma).clamp(1 / 1.05, 1.05), (mean / sigma).clamp(-0.1, 0.1)

    weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, weight, bias))
    assert torch.autograd.gradgradcheck(run, (x, weight, bias))


def test_second_derivative_of_moving_statistics_is_refused() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    y = BatchRenorm1d(3, gradient_statistics="moving")(x)
    with pytest.raises(RuntimeError, match="twice"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)
