"""One test for each way in which public implementations of Batch Renormalization break."""

import copy
import pickle

import pytest
import torch
from torch import nn

from models.renorm import BatchRenorm1d, BatchRenorm2d, convert_to_batch_renorm


def test_epsilon_is_inside_the_root() -> None:
    """One adds it to the deviation instead."""
    layer = BatchRenorm1d(1, eps=0.5, rmax=1.0, dmax=0.0, dtype=torch.float64)
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)  # variance 1
    assert float(layer(x)[1].detach()) == pytest.approx(1 / 1.5**0.5, abs=1e-15)


def test_it_copies_pickles_and_loads_batch_norm_files() -> None:
    """One is a ScriptModule (copies do not run, pickling fails) and stores running_std."""
    layer = copy.deepcopy(BatchRenorm2d(2))
    layer = pickle.loads(pickle.dumps(layer))
    layer.load_state_dict(nn.BatchNorm2d(2).state_dict(), strict=True)
    assert layer(torch.randn(2, 2, 2, 2)).shape == (2, 2, 2, 2)


def test_without_affine_there_are_no_parameters() -> None:
    """One registers them all the same."""
    assert not list(BatchRenorm2d(2, affine=False).parameters())
    assert list(BatchRenorm2d(2, affine=False).state_dict()) == list(
        nn.BatchNorm2d(2, affine=False).state_dict()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("moving", ["batch", "moving"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_precision_comes_out_as_it_went_in(dtype, moving, layout) -> None:
    """One returns float32; statistics in half precision would be another mistake."""
    torch.manual_seed(0)
    layer = BatchRenorm2d(3, rmax=1.1, dmax=0.1, gradient_statistics=moving)
    exact = copy.deepcopy(layer).double()
    x = (torch.randn(8, 3, 6, 6) + 1).to(dtype).contiguous(memory_format=layout).requires_grad_()
    dy = torch.randn(8, 3, 6, 6).to(dtype)
    y = layer(x)
    y.backward(dy)
    wide = x.detach().double().requires_grad_()
    expected = exact(wide)
    expected.backward(dy.double())
    assert y.dtype == x.grad.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol=2e-2)
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-2, atol=2e-2)
    torch.testing.assert_close(layer.running_var.double(), exact.running_var, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.weight.grad.double(), exact.weight.grad, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype) -> None:
    """Users of the existing layers report values that are not numbers under mixed precision."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), BatchRenorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with torch.autocast("cpu", dtype=dtype):
        y = network(torch.randn(4, 3, 8, 8))
        assert y.dtype == dtype
    y.float().square().mean().backward()
    assert network[1].running_mean.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_the_checkpoint_is_complete_and_evaluation_changes_nothing() -> None:
    """Some leave the running statistics out of the state dictionary, or update them in evaluation."""
    layer = BatchRenorm2d(2)
    layer(torch.randn(4, 2, 3, 3))
    before = copy.deepcopy(layer.state_dict())
    assert {"running_mean", "running_var"} <= set(before)
    layer.eval()(torch.randn(4, 2, 3, 3) + 9)
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_the_variance_is_biased() -> None:
    """Some use the unbiased one, or its factor without the pixels."""
    layer = BatchRenorm1d(1, eps=0.0, momentum=1.0)
    layer(torch.tensor([[0.0], [2.0]]))
    assert float(layer.running_var) == 1.0


def test_conversion_reaches_inside_sequential() -> None:
    """One walks the attributes of a module and silently skips its children in a Sequential."""
    network = nn.Sequential(nn.Sequential(nn.BatchNorm2d(2)), nn.ModuleList([nn.BatchNorm2d(2)]))
    convert_to_batch_renorm(network)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_constant_channels_stay_numbers(route, value) -> None:
    """One divides by a channel mean of 1 less itself; one by a constant feature's deviation."""
    layer = BatchRenorm1d(2)
    x = torch.full((8, 2), value, requires_grad=True)
    for _ in range(3):
        y = layer(x)
        y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(layer.running_var).all()
    images = BatchRenorm2d(2)
    images(torch.full((8, 2, 3, 3), value))
    assert torch.isfinite(images.running_var).all()


def test_the_correction_stays_in_its_limits() -> None:
    """One drops the result of its clamp, so that d reaches 25 where 5 is the limit."""
    layer = BatchRenorm1d(1, rmax=3.0, dmax=5.0)
    y = layer(torch.randn(64, 1) * 1000 + 1e6)
    # r is 3 and d is 5: no output is further from 5 than 3 deviations of the batch.
    assert float(y.detach().mean()) == pytest.approx(5.0, abs=1e-2)
    assert float(y.detach().std()) == pytest.approx(3.0, rel=0.02)
    layer.monitor = True
    layer(torch.randn(64, 1) * 1000 + 1e6)
    assert layer.clipped.tolist() == [1.0, 1.0]


def test_one_value_per_channel_is_refused() -> None:
    """One gets an infinite running variance from it; the native kernels take it silently, with dx = 0."""
    for layer, shape in ((BatchRenorm1d(3), (1, 3)), (BatchRenorm2d(3), (1, 3, 1, 1))):
        with pytest.raises(ValueError, match="one value per channel"):
            layer(torch.randn(shape))
        assert torch.equal(layer.running_var, torch.ones(3))
        layer.frozen = True
        layer(torch.randn(shape))
        layer.frozen = False
        layer.eval()(torch.randn(shape))


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="4D"):
        BatchRenorm2d(3)(torch.randn(2, 3))
    with pytest.raises(ValueError, match="3 channels"):
        BatchRenorm2d(3)(torch.randn(2, 4, 2, 2))


@pytest.mark.parametrize(
    "setting", [{"rmax": 0.5}, {"dmax": -1.0}, {"momentum": 2.0}, {"rmax": float("nan")}]
)
def test_settings_out_of_range_are_refused(setting) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        BatchRenorm2d(3, **setting)
    with pytest.raises(ValueError, match=next(iter(setting))):
        BatchRenorm2d(3).set_limits(**setting)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 4, 4)])
def test_a_batch_that_is_not_finite_does_not_poison_the_statistics(route, bad, shape) -> None:
    kind = BatchRenorm1d if len(shape) == 2 else BatchRenorm2d
    layer = kind(3, gradient_statistics="moving")
    layer(torch.randn(shape))
    before = layer.running_mean.clone(), layer.running_var.clone()
    x = torch.randn(shape)
    x[3, 1] = bad
    x.requires_grad_()
    layer(x).sum().backward()
    channels = [0, 2]
    assert torch.equal(layer.running_mean[1], before[0][1])
    assert torch.allclose(layer.running_var[1], before[1][1], rtol=1e-6)
    assert not torch.equal(layer.running_mean[channels], before[0][channels])
    assert torch.isfinite(layer.gradient_moments).all()


def test_a_frozen_layer_leaves_its_statistics_alone() -> None:
    layer = BatchRenorm2d(3)
    layer(torch.randn(4, 3, 2, 2))
    before = copy.deepcopy(layer.state_dict())
    layer.frozen = True
    x = torch.randn(4, 3, 2, 2)
    y = layer(x)
    y.sum().backward()
    assert layer.weight.grad is not None
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())
    assert torch.equal(y, layer.eval()(x))


def test_a_conversion_may_freeze_the_statistics_alone() -> None:
    network = convert_to_batch_renorm(nn.Sequential(nn.BatchNorm2d(3)), frozen=True)
    before = network[0].running_mean.clone()
    x = torch.randn(4, 3, 2, 2) + 1
    y = network(x)
    y.sum().backward()
    assert torch.equal(y, network.eval()(x))
    assert torch.equal(network[0].running_mean, before)
    assert network[0].weight.grad is not None


def test_momentum_none_averages_over_all_batches() -> None:
    layer = BatchRenorm1d(2, momentum=None, eps=0.0)
    batches = [torch.randn(16, 2) + i for i in range(4)]
    for x in batches:
        layer(x)
    torch.testing.assert_close(layer.running_mean, torch.stack([x.mean(0) for x in batches]).mean(0))
    deviations = torch.stack([x.std(0, correction=0) for x in batches])
    torch.testing.assert_close(layer.running_var, deviations.mean(0).square())


def test_fixed_scale_is_in_the_file_but_does_not_train() -> None:
    layer = BatchRenorm2d(3, scale=False)
    layer(torch.randn(4, 3, 2, 2)).square().sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    nn.BatchNorm2d(3).load_state_dict(layer.state_dict())


def test_input_and_gradients_in_any_memory_layout(route) -> None:
    torch.manual_seed(5)
    base = torch.randn(4, 6, 5, 3)
    expanded = torch.ones(1, 1, 1, 1).expand(4, 3, 5, 3)
    results = []
    for x in (base[:, ::2], base[:, ::2].contiguous()):
        layer = BatchRenorm2d(3)
        a = x.detach().requires_grad_()
        y = layer(a)
        y.backward(expanded)
        y2 = layer(a)
        (g2,) = torch.autograd.grad(y2, a, torch.arange(180.0).view(4, 5, 3, 3).permute(0, 3, 1, 2))
        results.append((y, a.grad, y2, g2))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
