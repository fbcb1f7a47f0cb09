import pytest
import torch
from torch import nn

from app.experiment.batches import Partition
from app.experiment.grouped import (
    GroupedNormalization,
    group_normalization,
    grouped_layers,
    ungroup_normalization,
    wide_layers,
)
from models.errors import InputError
from models.renorm import BatchRenorm2d, RenormSchedule

GROUPS, SIZE, CHANNELS = 4, 6, 3


def naive(layers: list[nn.Module], x: torch.Tensor) -> torch.Tensor:
    """Each group through a layer of its own, one after another."""
    y = torch.empty_like(x)
    for group, layer in enumerate(layers):
        y[group::GROUPS] = layer(x[group::GROUPS])
    return y


def made(kind: str) -> nn.Module:
    torch.manual_seed(1)
    rule = "moving" if kind == "moving" else "batch"
    layer = (
        nn.BatchNorm2d(CHANNELS)
        if kind == "batch"
        else BatchRenorm2d(CHANNELS, momentum=0.1, gradient_statistics=rule)
    )
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.uniform_(-1, 1)
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
    return layer.double()


@pytest.mark.parametrize("kind", ["batch", "renorm", "moving"])
def test_groups_as_channels_equal_a_layer_for_each_group(kind: str) -> None:
    one = GroupedNormalization(made(kind), GROUPS).train()
    twins = [made(kind) for _ in range(GROUPS)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = torch.randn(GROUPS * SIZE, CHANNELS, 2, 2, dtype=torch.float64, generator=generator)
        dy = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        one.plain.zero_grad()
        for twin in twins:
            twin.zero_grad()
        one.restart()
        y = one(mine)
        expected = naive(twins, theirs)
        torch.testing.assert_close(y, expected)
        y.backward(dy)
        expected.backward(dy)
        torch.testing.assert_close(mine.grad, theirs.grad)
        for name in ("weight", "bias"):
            total = sum(getattr(twin, name).grad for twin in twins)
            torch.testing.assert_close(getattr(one.plain, name).grad, total)
        one.collect()
        one.settle()
        settle_naively(twins)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(one.plain, name), getattr(twins[0], name))


def test_a_step_in_several_passes_is_the_step_at_once() -> None:
    layers = [GroupedNormalization(made("moving"), groups).train() for groups in (4, 2)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = torch.randn(SIZE, GROUPS, CHANNELS, 2, 2, dtype=torch.float64, generator=generator)
        dy = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        gradients = []
        for layer, passes in zip(layers, (1, 2), strict=True):
            parts = []
            for values, back in zip(x.chunk(passes, 1), dy.chunk(passes, 1), strict=True):
                layer.restart()
                part = values.flatten(0, 1).clone().requires_grad_()
                layer(part).backward(back.flatten(0, 1))
                layer.collect()
                parts.append(part.grad.view(values.shape))
            layer.settle()
            gradients.append(torch.cat(parts, 1))
        torch.testing.assert_close(*gradients)
        for one, other in zip(*(layer.plain.averaged_stats() for layer in layers), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["batch", "renorm", "moving"])
def test_consecutive_groups_are_one_layer_called_for_each(kind: str) -> None:
    one, twin = GroupedNormalization(made(kind), 1, consecutive=True).train(), made(kind).train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        for _ in range(GROUPS):
            x = torch.randn(SIZE, CHANNELS, 2, 2, dtype=torch.float64, generator=generator)
            dy = torch.randn(x.shape, dtype=x.dtype, generator=generator)
            mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
            one.restart()
            one(mine).backward(dy)
            one.collect()
            twin(theirs).backward(dy)
            torch.testing.assert_close(mine.grad, theirs.grad)
        one.settle()
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(one.plain, name), getattr(twin, name))


def test_shared_gradient_statistics_are_those_of_all_groups_averaged_over_steps() -> None:
    layer = GroupedNormalization(made("renorm"), GROUPS, shared_momentum=0.4).train()
    twins = [made("renorm").train() for _ in range(GROUPS)]
    weight = layer.plain.weight.detach()[None, :, None, None]
    averages = [torch.zeros(())] * 4
    generator = torch.Generator().manual_seed(0)
    for step_weight in (1, 1 / 2, 0.4):
        x = torch.randn(
            GROUPS * SIZE, CHANNELS, 2, 2, dtype=torch.float64, generator=generator, requires_grad=True
        )
        dy = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        before = [(t.running_mean.clone(), (t.running_var + t.eps).sqrt()) for t in twins]
        layer.plain.zero_grad()
        layer.restart()
        y = layer(x)
        y.backward(dy)
        layer.collect()
        layer.settle()
        torch.testing.assert_close(y, naive(twins, x))
        settle_naively(twins)

        normalized, slope = torch.empty_like(x), torch.empty_like(x)
        for group, (running_mean, running_std) in enumerate(before):
            part = x.detach()[group::GROUPS]
            std = (part.var((0, 2, 3), unbiased=False) + layer.plain.eps).sqrt()
            r = (std / running_std).clamp(1 / 3, 3)
            d = ((part.mean((0, 2, 3)) - running_mean) / running_std).clamp(-5, 5)
            slope[group::GROUPS] = (r / std)[None, :, None, None]
            centred = part - part.mean((0, 2, 3), keepdim=True)
            normalized[group::GROUPS] = centred * (r / std)[None, :, None, None] + d[None, :, None, None]
        parts = (dy, dy * normalized, normalized, normalized.square())
        now = [part.mean((0, 2, 3), keepdim=True) for part in parts]
        averages = [a + step_weight * (n - a) for a, n in zip(averages, now, strict=True)]
        dy_mean, product, z, square = averages
        fitted = (product - z * dy_mean) / (square - z.square())
        expected = weight * slope * (dy - dy_mean - (normalized - z) * fitted)
        torch.testing.assert_close(x.grad, expected)
        torch.testing.assert_close(layer.plain.weight.grad, (dy * normalized).sum((0, 2, 3)))
        torch.testing.assert_close(layer.plain.bias.grad, dy.sum((0, 2, 3)))


def test_sharing_in_one_group_is_the_layers_own_moving_average() -> None:
    settings = {"rmax": 1.0, "dmax": 0.0, "gradient_momentum": 0.4}
    shared = GroupedNormalization(BatchRenorm2d(CHANNELS, **settings), 1, shared_momentum=0.4).train()
    own = BatchRenorm2d(CHANNELS, **settings, gradient_statistics="moving").train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        x = torch.randn(SIZE, CHANNELS, 4, 4, generator=generator)
        dy = torch.randn(x.shape, generator=generator)
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        shared.restart()
        shared(mine).backward(dy)
        shared.collect()
        shared.settle()
        own(theirs).backward(dy)
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_with_weight_0_the_gradient_subtracts_nothing() -> None:
    layer = GroupedNormalization(made("renorm"), GROUPS, shared_momentum=0.0).train()
    x = torch.randn(GROUPS * SIZE, CHANNELS, 2, 2, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(x.shape, dtype=x.dtype)
    layer.restart()
    y = layer(x)
    y.backward(dy)
    # Each group's output is linear in its input; the slope is found from two of its values.
    for group in range(GROUPS):
        given, got = x.detach()[group::GROUPS].flatten(2), y.detach()[group::GROUPS].flatten(2)
        slope = (got[0, :, 0] - got[1, :, 0]) / (given[0, :, 0] - given[1, :, 0])
        assert x.grad is not None
        torch.testing.assert_close(x.grad[group::GROUPS], dy[group::GROUPS] * slope[:, None, None])


@pytest.mark.parametrize("shared_momentum", [None, 0.4])
def test_bfloat16_is_normalized_with_statistics_in_float32(shared_momentum: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (10 + torch.randn(GROUPS * SIZE, CHANNELS, 8, 8, generator=generator)).bfloat16()
    dy = torch.randn(x.shape, generator=generator).bfloat16()
    seen = {}
    for dtype in (torch.float32, torch.bfloat16):
        layer = GroupedNormalization(BatchRenorm2d(CHANNELS), GROUPS, shared_momentum=shared_momentum).train()
        given = x.detach().clone().to(dtype).requires_grad_()
        layer.restart()
        y = layer(given)
        y.backward(dy.to(y.dtype))
        layer.collect()
        layer.settle()
        assert y.dtype == dtype
        assert given.grad is not None
        seen[dtype] = [y.float(), given.grad.float(), layer.plain.running_mean, layer.plain.running_var]
    torch.testing.assert_close(seen[torch.bfloat16], seen[torch.float32], rtol=0.05, atol=0.05)


def settle_naively(twins: list[nn.Module]) -> None:
    """All twins go on from the mean of their statistics: deviations for renorm, variances for batch norm."""
    if isinstance(twins[0], BatchRenorm2d):
        values = [torch.stack(v).mean(0) for v in zip(*(t.averaged_stats() for t in twins), strict=True)]
        for twin in twins:
            twin.set_averaged_stats(values)
        return
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(t, name) for t in twins]).mean(0)
        for twin in twins:
            getattr(twin, name).copy_(mean)


def test_renorm_without_correction_is_batch_norm_in_groups() -> None:
    plain = nn.BatchNorm2d(CHANNELS)
    ours = BatchRenorm2d(CHANNELS, rmax=1, dmax=0)
    x = torch.randn(GROUPS * SIZE, CHANNELS, 2, 2)
    batch = GroupedNormalization(plain, GROUPS).train()(x)
    torch.testing.assert_close(GroupedNormalization(ours, GROUPS).train()(x), batch)


def test_by_batch_uses_each_groups_statistics_and_moves_nothing() -> None:
    layer = GroupedNormalization(made("batch"), GROUPS).eval()
    before = layer.plain.running_mean.clone()
    x = torch.randn(GROUPS * SIZE, CHANNELS, 2, 2, dtype=torch.float64)
    layer.by_batch = True
    y = layer(x)
    torch.testing.assert_close(y, naive([made("batch").train() for _ in range(GROUPS)], x))
    torch.testing.assert_close(layer.plain.running_mean, before)


def test_a_network_is_grouped_and_ungrouped_in_place_with_its_parameters() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(BatchRenorm2d(4)), nn.GroupNorm(2, 4))
    parameters = {id(p) for p in network.parameters()}
    group_normalization(network, 2)
    assert {id(p) for p in network.parameters()} == parameters
    assert len(list(grouped_layers(network))) == 1
    RenormSchedule(wide_layers(network), total_steps=10).go_to(10)
    (layer,) = grouped_layers(network)
    assert float(layer.wide.rmax) == 3.0
    assert isinstance(ungroup_normalization(network)[1][0], BatchRenorm2d)


@pytest.mark.parametrize(("size", "classes", "inside"), [(8, 2, {4}), (8, 8, {1}), (16, 4, {4})])
def test_class_groups_hold_what_they_say(size: int, classes: int, inside: set[int]) -> None:
    labels = torch.arange(8).repeat_interleave(4)
    order = Partition.interleaved(Partition(size, classes).groups(8, 4, (0, 0)))
    assert sorted(order.tolist()) == list(range(32))
    groups = 32 // size
    for group in range(groups):
        _, counts = labels[order[group::groups]].unique(return_counts=True)
        assert len(counts) == classes
        assert set(counts.tolist()) == inside


def test_shuffled_groups_depend_on_the_key_alone() -> None:
    partition = Partition(8)
    assert partition.groups(8, 4, (0, 1)).tolist() == partition.groups(8, 4, (0, 1)).tolist()
    assert partition.groups(8, 4, (0, 1)).tolist() != partition.groups(8, 4, (0, 2)).tolist()


@pytest.mark.parametrize(("size", "classes"), [(7, None), (8, 3), (32, 4), (12, 4)])
def test_groups_that_do_not_divide_the_batch_are_refused(size: int, classes: int | None) -> None:
    with pytest.raises(InputError):
        Partition(size, classes).groups(6, 4, (0, 0))
