"""The schedule as data, its resumption, and the Lightning callback that drives it."""

import copy
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from models.callbacks.renorm import RenormScheduleCallback
from models.errors import InputError
from models.renorm import BatchRenorm1d, Ramp, RenormSchedule, falling_momentum, narrowed_rmax
from tests.models.conftest import quiet_trainer


def test_the_papers_ramps() -> None:
    layer = BatchRenorm1d(2)
    schedule = RenormSchedule(layer, total_steps=130_000)
    assert schedule.values() == {"rmax": 1.0, "dmax": 0.0}
    for steps, rmax, dmax in ((5_000, 1, 0), (15_000, 1 + 20 / 35, 2.5), (25_000, 15 / 7, 5), (40_000, 3, 5)):
        schedule.go_to(steps)
        assert float(layer.rmax) == pytest.approx(rmax, abs=1e-5)
        assert float(layer.dmax) == pytest.approx(dmax, abs=1e-5)


def test_the_gradients_weight_falls_from_the_papers_while_rmax_opens() -> None:
    layers = nn.Sequential(
        *(BatchRenorm1d(2, gradient_statistics="moving", gradient_momentum=m) for m in (0.05, 0.2))
    )
    schedule = RenormSchedule(layers, rmax=Ramp(1, 3, begin=10, finish=30), unit="steps")
    for steps, open_part in ((0, 0), (10, 0), (15, 0.25), (30, 1), (99, 1)):
        schedule.go_to(steps)
        weights = [float(layer.gradient_momentum) for layer in layers]
        assert weights == pytest.approx([1 - 0.95 * open_part, 1 - 0.8 * open_part])
    again = RenormSchedule(layers, rmax=Ramp(1, 3, begin=10, finish=30), unit="steps")
    again.load_state_dict(schedule.state_dict() | {"steps": 15})
    assert [float(layer.gradient_momentum) for layer in layers] == pytest.approx([0.7625, 0.8])


def test_a_constant_rmax_leaves_the_gradients_weight_alone() -> None:
    layer = BatchRenorm1d(2, gradient_statistics="moving", gradient_momentum=0.2)
    schedule = RenormSchedule(layer, rmax=Ramp(3, 3, begin=10, finish=30), unit="steps")
    for steps in (0, 20, 99):
        schedule.go_to(steps)
        assert float(layer.gradient_momentum) == pytest.approx(0.2)


def test_until_rmax_opens_moving_gradients_are_the_papers() -> None:
    torch.manual_seed(0)
    moving, paper = BatchRenorm1d(3, gradient_statistics="moving"), BatchRenorm1d(3)
    for layer in (moving, paper):
        RenormSchedule(layer, total_steps=1000)
    for _ in range(3):
        a = torch.randn(8, 3, requires_grad=True)
        b = a.detach().clone().requires_grad_()
        target = torch.randn(8, 3)
        (moving(a) * target).sum().backward()
        (paper(b) * target).sum().backward()
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize(
    ("steps", "end"), [(10, 3), (1000, 3), (1500, 2.25), (2000, 1.5), (float("inf"), 1.5)]
)
def test_long_runs_have_the_narrower_limit(steps: float, end: float) -> None:
    ramp = narrowed_rmax(steps)
    assert [ramp.at(time) for time in (0, 5 / 130, 40 / 130, 1)] == [1, 1, end, end]


@given(
    start=st.floats(0, 10),
    end=st.floats(0, 10),
    begin=st.floats(0, 100),
    length=st.floats(0, 100),
    shape=st.sampled_from(["linear", "cosine", "step"]),
    time=st.floats(0, 300),
)
def test_a_ramp_stays_between_its_ends(start, end, begin, length, shape, time) -> None:
    ramp = Ramp(start, end, begin, begin + length, shape)
    low, high = sorted((start, end))
    assert low - 1e-9 <= ramp.at(time) <= high + 1e-9
    assert ramp.at(begin + length) == end
    if begin + length > begin:
        assert ramp.at(begin) == start


def test_bad_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="begin <= finish"):
        Ramp(1, 2, begin=3, finish=2)
    with pytest.raises(ValueError, match="shape"):
        Ramp(1, 2, 0, 1, shape="steep")
    with pytest.raises(ValueError, match="total_steps"):
        RenormSchedule(nn.Module())
    with pytest.raises(ValueError, match="unit"):
        RenormSchedule(nn.Module(), unit="epochs")
    with pytest.raises(ValueError, match="rmax"):
        RenormSchedule(BatchRenorm1d(2), rmax=Ramp(0.5, 2, 0, 1), total_steps=1)


def test_resuming_equals_going_on() -> None:
    torch.manual_seed(0)
    ramps = {"rmax": Ramp(1, 3, 0, 8), "dmax": Ramp(0, 5, 0, 8), "momentum": Ramp(0.5, 0.1, 0, 8)}
    xs = torch.randn(8, 16, 3)

    def run(network: nn.Module, schedule: RenormSchedule, batches: Tensor) -> None:
        for x in batches:
            network(x).square().sum().backward()
            schedule.step()

    def build() -> tuple[nn.Module, RenormSchedule]:
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(3, 4), BatchRenorm1d(4, gradient_statistics="moving"))
        return network, RenormSchedule(network, **ramps, unit="steps")

    whole, schedule = build()
    run(whole, schedule, xs)
    first, schedule = build()
    run(first, schedule, xs[:4])
    saved = copy.deepcopy((first.state_dict(), schedule.state_dict()))
    gradients = {name: p.grad for name, p in first.named_parameters()}
    second, schedule = build()
    second.load_state_dict(saved[0])
    schedule.load_state_dict(saved[1])
    for name, p in second.named_parameters():
        p.grad = gradients[name].clone()
    run(second, schedule, xs[4:])
    for a, b in zip(whole.buffers(), second.buffers(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    with pytest.raises(ValueError, match="one side"):
        RenormSchedule(BatchRenorm1d(2), total_steps=1).load_state_dict(saved[1])


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(4, 6), BatchRenorm1d(6, gradient_statistics="moving"), nn.Linear(6, 1)
        )

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.network(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.randn(40, 4) * 5 + 3), batch_size=4)


def fit(
    folder: Path, steps: int, ckpt: Path | None = None
) -> tuple[Module, RenormScheduleCallback, pl.Trainer]:
    callback = RenormScheduleCallback(
        rmax=Ramp(1.0, 3.0, 2, 8), dmax=Ramp(0.0, 1.0, 2, 8), momentum=Ramp(0.5, 0.1, 0, 8), unit="steps"
    )
    module = Module()
    trainer = quiet_trainer(folder, callback, max_steps=steps, logger=CSVLogger(folder), log_every_n_steps=2)
    trainer.fit(module, ckpt_path=ckpt, weights_only=ckpt is not None)
    return module, callback, trainer


@pytest.mark.filterwarnings("ignore:.*num_workers.*")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*|.*not resumable.*")
@pytest.mark.filterwarnings("ignore:.*ModelCheckpoint.*|.*exists and is not empty.*")
def test_lightning_drives_logs_and_resumes(tmp_path) -> None:
    pl.seed_everything(0)
    module, callback, trainer = fit(tmp_path / "a", 5)
    layer = module.network[1]
    assert float(layer.rmax) == pytest.approx(2.0)
    assert float(layer.dmax) == pytest.approx(0.5)
    assert callback.schedule.steps == 5
    assert not layer.monitor
    metrics = (Path(trainer.logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert {"renorm/clipped_r", "renorm/clipped_d", "renorm/rmax", "renorm/network.1/clipped_d"} <= set(
        metrics[0].split(",")
    )
    assert len(metrics) == 3  # the header, steps 2 and 4
    checkpoint = tmp_path / "b.ckpt"
    trainer.save_checkpoint(checkpoint)
    resumed, callback, trainer = fit(tmp_path / "c", 7, checkpoint)
    assert callback.schedule.steps == 7
    assert float(resumed.network[1].gradient_batches) == 7
    assert float(resumed.network[1].rmax) == pytest.approx(1 + 2 * 5 / 6)


def test_a_fraction_of_an_endless_run_is_refused() -> None:
    class Endless:
        estimated_stepping_batches = float("inf")

    with pytest.raises(InputError, match="known length"):
        RenormScheduleCallback().on_train_start(Endless(), Module())


@pytest.mark.parametrize(("total", "finish"), [(400, 200), (1000, 500), (20_000, 500)])
def test_the_falling_momentum_reaches_the_papers_within_500_steps_or_half_the_run(total, finish) -> None:
    layer = BatchRenorm1d(2)
    schedule = RenormSchedule(layer, momentum=falling_momentum(total), total_steps=total)
    assert float(layer.momentum) == pytest.approx(0.1)
    schedule.go_to(finish // 2)
    assert float(layer.momentum) == pytest.approx(0.055)
    schedule.go_to(finish)
    assert float(layer.momentum) == pytest.approx(0.01)


def test_the_falling_momentum_in_steps_needs_no_length() -> None:
    assert falling_momentum(float("inf"), "steps") == Ramp(0.1, 0.01, 0, 500)


@pytest.mark.parametrize(("rmax", "now"), [("narrowed", 1.5), (Ramp(1, 2, 0, 1), 1.8)])
def test_the_callback_narrows_r_unless_told_otherwise(rmax, now) -> None:
    class Long:
        estimated_stepping_batches = 5000
        global_step = 4000

    module = Module()
    RenormScheduleCallback(rmax=rmax).on_train_start(Long(), module)
    assert float(module.network[1].rmax) == pytest.approx(now)


@pytest.mark.parametrize(("momentum", "used"), [("falling", 0.1), (None, 0.03), (Ramp(0.5, 0.1, 0, 1), 0.5)])
def test_the_callback_sets_the_momentum_it_is_given(momentum, used) -> None:
    class Hundred:
        estimated_stepping_batches, global_step = 100, 0

    layer = BatchRenorm1d(2, momentum=0.03)
    RenormScheduleCallback(momentum=momentum).on_train_start(Hundred(), layer)
    assert float(layer.momentum) == pytest.approx(used)
