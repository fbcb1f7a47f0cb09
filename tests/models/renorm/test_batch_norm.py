"""What Batch Renormalization and BatchNorm share: limits that make them one, evaluation, files."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.renorm import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    SyncBatchRenorm,
    convert_to_batch_renorm,
    revert_to_batch_norm,
)


def small_network() -> nn.Module:
    shared = nn.BatchNorm2d(4, eps=1e-3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        shared,
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 4, 1), shared),
        nn.Flatten(),
        nn.Linear(4 * 36, 6),
        nn.BatchNorm1d(6, affine=False),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_without_correction_it_is_batch_norm(route, dtype, layout) -> None:
    torch.manual_seed(0)
    ours = BatchRenorm2d(5, rmax=1.0, dmax=0.0, dtype=dtype)
    theirs = nn.BatchNorm2d(5, dtype=dtype)
    with torch.no_grad():
        ours.weight.copy_(torch.randn(5))
        theirs.weight.copy_(ours.weight)
    x = (torch.randn(8, 5, 6, 6, dtype=dtype) * 3 + 2).contiguous(memory_format=layout)
    dy = torch.randn(8, 5, 6, 6, dtype=dtype)
    results = []
    for layer in (ours, theirs):
        a = x.clone().requires_grad_()
        y = layer(a)
        results.append((y, *torch.autograd.grad(y, [a, layer.weight, layer.bias], dy)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5 if dtype == torch.float32 else 1e-11, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_variance_of_far_off_values_is_as_exact_as_batch_norms(route, layout) -> None:
    """The CPU route sums squares about a guess of the mean: values far from zero must not cost digits."""
    torch.manual_seed(1)
    for offset in (0.0, 100.0, 3000.0):
        x = torch.randn(32, 4, 8, 8) + offset
        x[0] += 50  # the first example, which the guess is made from, among the odd ones
        x = x.contiguous(memory_format=layout)
        dy = torch.randn(32, 4, 8, 8)
        wide = nn.BatchNorm2d(4, dtype=torch.float64)
        exact = x.double().requires_grad_()
        wide(exact).backward(dy.double())
        errors = []
        for layer in (BatchRenorm2d(4, rmax=1.0, dmax=0.0), nn.BatchNorm2d(4)):
            a = x.clone().requires_grad_()
            y = layer(a)
            y.backward(dy)
            pairs = [(y.detach(), wide(x.double()).detach()), (a.grad, exact.grad)]
            errors.append([float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs])
        for ours, theirs in zip(*errors, strict=True):
            assert ours <= 3 * theirs + 1e-6


def test_evaluation_is_batch_norms_bit_for_bit() -> None:
    torch.manual_seed(2)
    network = small_network()
    for _ in range(3):
        network(torch.randn(4, 3, 8, 8))
    network.eval()
    x = torch.randn(4, 3, 8, 8)
    expected = network(x)
    converted = convert_to_batch_renorm(copy.deepcopy(network))
    assert torch.equal(converted(x), expected)
    assert torch.equal(revert_to_batch_norm(converted)(x), expected)


@pytest.mark.parametrize("moving", ["batch", "moving"])
@pytest.mark.parametrize("affine", [True, False])
def test_files_load_strictly_both_ways(moving, affine) -> None:
    torch.manual_seed(3)
    theirs = nn.BatchNorm2d(4, affine=affine)
    theirs(torch.randn(4, 4, 3, 3) * 2 + 1)
    ours = BatchRenorm2d(4, affine=affine, gradient_statistics=moving)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours(torch.randn(4, 4, 3, 3))
    back = nn.BatchNorm2d(4, affine=affine)
    back.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(back.eval()(x), ours.eval()(x))


def test_oldest_batch_norm_files_load() -> None:
    state = nn.BatchNorm1d(3).state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    BatchRenorm1d(3).load_state_dict(state)


def test_conversion_keeps_what_there_was() -> None:
    network = small_network().double()
    network[3][0].requires_grad_(False)
    network[1].weight.requires_grad_(False)
    network[4].eval()
    network[1].eval()
    parameters = {id(p) for p in network.parameters()}
    statistics = network[1].running_mean
    converted = convert_to_batch_renorm(network, rmax=2.0, dmax=1.0, momentum=None)
    assert converted is network
    assert {id(p) for p in network.parameters()} == parameters  # an optimizer's hold on them stays
    assert network[1] is network[3][1]
    assert type(network[1]) is BatchRenorm2d
    assert type(network[6]) is BatchRenorm1d
    assert network[1].running_mean is statistics
    assert network[1].running_mean.dtype == torch.float64
    assert network[1].eps == 1e-3
    assert float(network[1].momentum) == 0.1
    assert float(network[1].rmax) == 2.0
    assert not network[1].weight.requires_grad
    assert network[1].bias.requires_grad
    assert not network[1].training
    assert network[6].training
    assert network[6].weight is None
    revert_to_batch_norm(network)
    assert type(network[1]) is nn.BatchNorm2d
    assert network[1] is network[3][1]
    assert {id(p) for p in network.parameters()} == parameters


def test_conversion_of_a_layer_alone_and_of_the_synchronized_one() -> None:
    assert isinstance(convert_to_batch_renorm(nn.BatchNorm3d(2)), BatchRenorm3d)
    network = nn.Sequential(nn.SyncBatchNorm(2), nn.BatchNorm2d(2))
    convert_to_batch_renorm(network)
    assert isinstance(network[0], SyncBatchRenorm)
    assert isinstance(network[1], BatchRenorm2d)
    assert isinstance(revert_to_batch_norm(network)[0], nn.SyncBatchNorm)
    convert_to_batch_renorm(network, sync=True, scale=False)
    assert all(isinstance(layer, SyncBatchRenorm) and not layer.weight.requires_grad for layer in network)
    # Lightning and DDP turn BatchNorm layers into SyncBatchNorm: ours are none.
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(BatchRenorm2d(2)), BatchRenorm2d)


class Subclass(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize(
    "layer", [Subclass(2), nn.LazyBatchNorm2d(), nn.BatchNorm2d(2, track_running_stats=False)]
)
def test_conversion_says_what_it_cannot_convert(layer) -> None:
    network = nn.Sequential(nn.Sequential(layer), nn.BatchNorm2d(2))
    with pytest.raises(ValueError, match=r"0\.0"):
        convert_to_batch_renorm(network)
    convert_to_batch_renorm(network, skip=["0.0"])
    assert network[0][0] is layer
    assert isinstance(network[1], BatchRenorm2d)
    with pytest.raises(ValueError, match="nowhere"):
        convert_to_batch_renorm(network, skip=["nowhere"])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_run_on_their_own(copied) -> None:
    torch.manual_seed(4)
    layer = BatchRenorm2d(3, rmax=1.5, gradient_statistics="moving")
    x = torch.randn(4, 3, 2, 2)
    layer(x.requires_grad_()).sum().backward()
    other = copied(layer)
    assert torch.equal(other(x), layer(x))
    other.set_limits(rmax=2.0)
    assert float(layer.rmax) == 1.5


def test_meta_device_and_half_precision() -> None:
    layer = BatchRenorm2d(3, rmax=2.0, device="meta")
    assert "rmax" not in repr(layer)
    layer.to_empty(device="cpu").reset_parameters()
    assert (float(layer.rmax), float(layer.dmax)) == (2.0, 5.0)
    assert torch.equal(layer.running_var, torch.ones(3))
    layer.bfloat16()
    assert layer.weight.dtype == torch.bfloat16
    assert layer.running_mean.dtype == torch.float32
    x = torch.randn(4, 3, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad.dtype == torch.bfloat16
    assert layer.eval()(x).dtype == torch.bfloat16


@settings(deadline=None)
@given(
    rmax=st.floats(1, 10),
    dmax=st.floats(0, 10),
    momentum=st.floats(0, 1),
    eps=st.floats(1e-6, 1e-2),
    later=st.booleans(),
)
def test_a_layer_cast_to_float64_is_one_made_in_it(rmax, dmax, momentum, eps, later) -> None:
    """No setting stays rounded to float32, whether it was given at the start or later."""
    limits = {"rmax": rmax, "dmax": dmax, "momentum": momentum}
    cast = BatchRenorm2d(3, eps=eps, **({} if later else limits))
    if later:
        cast.set_limits(**limits)
    cast.double()
    made = BatchRenorm2d(3, eps=eps, **limits, dtype=torch.float64)
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cast(5 * x + 1), made(5 * x + 1))
    for (name, one), other in zip(cast.named_buffers(), made.buffers(), strict=True):
        if name != "clipped":
            assert one.dtype == other.dtype
            assert torch.equal(one, other), name
    assert float(cast.rmax) == rmax
    assert float(cast.float().rmax) == float(torch.tensor(rmax))
    assert revert_to_batch_norm(cast).momentum == momentum
