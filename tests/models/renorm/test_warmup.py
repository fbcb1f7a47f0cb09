"""A layer that widens its limits by itself, counted by the batches that it has seen."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models.callbacks.renorm import RenormScheduleCallback
from models.errors import InputError
from models.module import MetricLearner
from models.renorm import (
    BatchRenorm1d,
    BatchRenorm3d,
    RenormSchedule,
    SyncBatchRenorm,
    convert_to_batch_renorm,
)


@pytest.mark.parametrize("shape", ["linear", "step"])
@pytest.mark.parametrize("moving", ["batch", "moving"])
def test_each_step_has_the_limits_of_its_number(route, shape, moving) -> None:
    torch.manual_seed(0)
    settings = {"gradient_statistics": moving, "momentum": 0.3, "dtype": torch.float64}
    layer = BatchRenorm1d(4, rmax=1.4, dmax=0.8, warmup_steps=4, warmup_shape=shape, **settings)
    driven = BatchRenorm1d(4, **settings)
    for number in range(7):
        done = min(number / 4, 1) if shape == "linear" else float(number >= 4)
        driven.set_limits(1 + 0.4 * done, 0.8 * done, gradient_momentum=1 - 0.95 * done)
        rmax, dmax = layer.limits()
        assert float(rmax) == pytest.approx(float(driven.rmax), abs=1e-12)
        assert float(dmax) == pytest.approx(float(driven.dmax), abs=1e-12)
        a = (torch.randn(16, 4, dtype=torch.float64) * (1 + number) + 1).requires_grad_()
        b = a.detach().clone().requires_grad_()
        y, expected = layer(a), driven(b)
        torch.testing.assert_close(y, expected)
        y.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad)
        torch.testing.assert_close(layer.running_var, driven.running_var)


def test_it_begins_as_batch_norm() -> None:
    x = torch.randn(16, 4) * 3 + 2
    torch.testing.assert_close(BatchRenorm1d(4, warmup_steps=10)(x), nn.BatchNorm1d(4)(x))


def test_a_checkpoint_resumes_it_and_batch_norms_files_load_strictly() -> None:
    torch.manual_seed(1)
    xs = torch.randn(8, 16, 4) * 2 + 1
    whole = BatchRenorm1d(4, warmup_steps=6)
    for x in xs[:4]:
        whole(x)
    resumed = BatchRenorm1d(4, warmup_steps=6)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert list(whole.state_dict()) == list(nn.BatchNorm1d(4).state_dict())
    for x in xs[4:]:
        assert torch.equal(resumed(x), whole(x))
    resumed.reset_running_stats()
    assert [float(limit) for limit in resumed.limits()] == [1, 0]


@given(
    rmax=st.floats(1, 10), dmax=st.floats(0, 10), steps=st.integers(1, 200_000), seen=st.integers(0, 400_000)
)
def test_limits_stay_between_their_ends(rmax, dmax, steps, seen) -> None:
    layer = BatchRenorm1d(1, rmax=rmax, dmax=dmax, warmup_steps=steps)
    layer.num_batches_tracked.fill_(seen)
    high, bound = (float(limit) for limit in layer.limits())
    assert 1 <= high <= float(layer.rmax) * (1 + 1e-6)
    assert 0 <= bound <= float(layer.dmax) * (1 + 1e-6)
    if seen >= steps:
        assert [high, bound] == pytest.approx([rmax, dmax], rel=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_layer_warms_up_without_compiling_again() -> None:
    torch.manual_seed(2)
    layer = BatchRenorm1d(4, warmup_steps=3, momentum=0.3)
    twin = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(5):
            x = torch.randn(16, 4) * 2 + 1
            torch.testing.assert_close(compiled(x), twin(x), rtol=1e-4, atol=1e-5)


def test_conversion_and_synchronized_layers_take_it() -> None:
    network = convert_to_batch_renorm(nn.Sequential(nn.BatchNorm1d(4)), warmup_steps=5, warmup_shape="step")
    assert (network[0].warmup_steps, network[0].warmup_shape) == (5, "step")
    assert "warmup_steps=5, warmup_shape='step'" in repr(network)
    assert SyncBatchRenorm(4, warmup_steps=5).warmup_steps == 5


def test_segmentation_in_three_dimensions_under_autocast_stays_finite() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3), BatchRenorm3d(4, warmup_steps=2), nn.ReLU(), nn.Conv3d(4, 1, 1)
    )
    for _ in range(4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = network(torch.randn(2, 1, 6, 6, 6) * 100)
        y.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    assert torch.isfinite(network[1].running_var).all()


@pytest.mark.parametrize(
    "settings",
    [{"warmup_steps": 0}, {"warmup_steps": 5, "rmax": float("inf")}, {"warmup_shape": "steep"}],
)
def test_unusable_warm_ups_are_refused(settings) -> None:
    with pytest.raises(ValueError, match="warm"):
        BatchRenorm1d(4, **settings)


def test_a_schedule_and_a_warm_up_do_not_go_together() -> None:
    network = nn.Sequential(BatchRenorm1d(4, warmup_steps=5))
    with pytest.raises(ValueError, match=r"layer '0' has warmup_steps of its own: [^\n]*$"):
        RenormSchedule(network, total_steps=10)

    class Hundred:
        estimated_stepping_batches, global_step = 100, 0

    with pytest.raises(InputError, match="warmup_steps of its own"):
        RenormScheduleCallback().on_train_start(Hundred(), network)


def test_training_with_a_warm_up_has_no_schedule_besides() -> None:
    module = MetricLearner("conv4", {"width": 4}, normalization_args={"warmup_steps": 5})
    module.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert not any(isinstance(callback, RenormScheduleCallback) for callback in module.configure_callbacks())
