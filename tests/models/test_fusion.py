"""Training with ReLUs and residual sums inside the layers: the same network to everybody who looks at it."""

import copy
import os
import pickle
import shutil
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models import fusion
from models.module import MetricLearner
from models.network import Architecture, EmbeddingNetwork
from models.renorm import BatchRenorm, BatchRenorm2d, native, revert_to_batch_norm
from tests.models.conftest import quiet_trainer


@pytest.fixture(autouse=True)
def kernels():
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("the fused kernels need a C++ compiler")
    native.build()
    yield
    native.disable()


@pytest.fixture
def taken(monkeypatch) -> list[tuple[bool, bool]]:
    """What layers were asked to take in, a residual or a ReLU."""
    seen, forward = [], BatchRenorm.forward

    def watch(self, input, mask=None, *, residual=None, relu=False):  # noqa: A002
        if relu or residual is not None:
            seen.append((residual is not None, relu))
        return forward(self, input, mask, residual=residual, relu=relu)

    monkeypatch.setattr(BatchRenorm, "forward", watch)
    return seen


def build(backbone: str = "resnet10", **values: object) -> EmbeddingNetwork:
    torch.manual_seed(0)
    args = values.pop("backbone_args", {"width": 4} if backbone in ("conv4", "resnet10") else {})
    return EmbeddingNetwork(Architecture(backbone=backbone, backbone_args=args, embedding_dim=8, **values))  # type: ignore[arg-type]


def step(network: nn.Module, size: int = 32, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(seed)
    y = network(torch.randn(4, 3, size, size, dtype=dtype))
    (y * torch.arange(8, dtype=dtype)).sum().backward()
    return y.detach()


DEEP = {"width": 4, "pools": 3, "residuals": [0, 1, 2, 1]}


@pytest.mark.parametrize(
    ("backbone", "args", "settings", "layers"),
    [
        ("conv4", DEEP, {}, 5),
        ("conv4", {"width": 4}, {}, 0),  # it pools between the layer and the ReLU
        ("resnet10", {"width": 4}, {}, 9),
        ("resnet18", {}, {}, 17),
        ("resnet18", {}, {"gradient_statistics": "moving"}, 17),
        ("resnet18", {}, {"frozen": True}, 17),
        ("resnet50", {}, {}, 49),
        ("timm.resnet18", {}, {}, 17),
        ("timm.tf_efficientnet_lite0", {}, {"frozen": True}, 9),
    ],
)
def test_outputs_gradients_statistics_and_files_stay(backbone, args, settings, layers, taken) -> None:
    """In float64: in float32 the rounding of one route moves values over a ReLU's edge."""
    fused = build(backbone, backbone_args=args, normalization_args=settings).double()
    plain = copy.deepcopy(fused)
    for number in range(2):
        fused.zero_grad()
        plain.zero_grad()
        taken.clear()
        y = step(fused, 64, number, torch.float64)
        assert len(taken) == layers
        native.disable()
        taken.clear()
        expected = step(plain, 64, number, torch.float64)
        assert not taken
        native.build()
        torch.testing.assert_close(y, expected, rtol=1e-8, atol=1e-8)
        for (name, p), (other, q) in zip(fused.named_parameters(), plain.named_parameters(), strict=True):
            assert name == other
            assert (p.grad - q.grad).norm() <= 1e-8 * (q.grad.norm() + 1), name
    assert list(fused.state_dict()) == list(plain.state_dict())
    for p, q in zip(fused.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-8)
    taken.clear()
    fused.eval()(torch.randn(2, 3, 64, 64, dtype=torch.float64))
    assert not taken


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_train_their_own_layers(copied, taken) -> None:
    network = build()
    step(network)
    other = copied(network)
    network.zero_grad()
    taken.clear()
    step(other)
    assert len(taken) == 9
    assert all(p.grad is None for p in network.parameters())
    assert all(p.grad is not None for p in other.parameters())


def test_it_follows_what_happens_to_the_network(taken) -> None:
    network = build()
    step(network)
    network.double()
    torch.manual_seed(1)
    assert network(torch.randn(4, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64
    network.float()
    network.backbone.stem[1].frozen = True
    before = network.backbone.stem[1].running_mean.clone()
    step(network)
    assert torch.equal(network.backbone.stem[1].running_mean, before)
    revert_to_batch_norm(network)
    taken.clear()
    assert step(network).isfinite().all()
    assert not taken


@pytest.mark.parametrize("part", ["", "stages", "stages.0", "stages.0.relu", "stem.1"])
def test_who_hooks_a_module_sees_what_went_in_and_out(part, taken) -> None:
    network, calls = build(), []
    step(network)
    taken.clear()
    handle = network.backbone.get_submodule(part).register_forward_hook(lambda *_: calls.append(1))
    step(network)
    assert calls
    assert not taken
    handle.remove()
    step(network)
    assert len(taken) == 9


def test_checkpointing_that_is_turned_on_later_is_heeded(taken) -> None:
    network = build("timm.resnet18")
    step(network)
    network.backbone.set_grad_checkpointing()
    taken.clear()
    step(network)
    assert not taken


def test_the_whole_network_may_be_checkpointed() -> None:
    network = build()
    plain = copy.deepcopy(network)
    expected = step(plain)
    y = step(lambda x: torch.utils.checkpoint.checkpoint(network, x, use_reentrant=False))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    for p, q in zip(network.parameters(), plain.parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 1e-3 * q.grad.norm() + 1e-5
    for p, q in zip(network.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


class Shaking(nn.Module):
    """Draws in Python: a trace would keep the first draw."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.steps = BatchRenorm2d(3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return self.norm(x).relu() * self.steps


def test_other_peoples_networks_run_as_they_are(taken) -> None:
    backbone, run = Shaking(), fusion.FusedForward()
    x = torch.randn(4, 3, 2, 2)
    for _ in range(3):
        run(backbone, x)
    assert backbone.steps == 3
    assert not taken


def test_data_parallel_training_reduces_every_gradient(tmp_path, taken) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        network = build()
        step(DistributedDataParallel(network))
        assert len(taken) == 9
        assert all(p.grad is not None for p in network.parameters())
    finally:
        dist.destroy_process_group()


class SaveOnTheWay(pl.Callback):
    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 0 and not self.file.exists():
            trainer.save_checkpoint(self.file)


@pytest.mark.filterwarnings("ignore:.*num_workers.*|.*LeafSpec.*|.*not resumable.*|.*isinstance.treespec.*")
@pytest.mark.filterwarnings("ignore:.*ModelCheckpoint.*|.*exists and is not empty.*")
def test_a_run_resumes_with_fused_layers_as_one_without_them_goes(patterns, tmp_path: Path, taken) -> None:
    """Two epochs of four steps: plain, fused, and the second one again from the first one's checkpoint."""

    def fit(checkpoint: Path | None = None) -> MetricLearner:
        pl.seed_everything(3)
        module = MetricLearner("resnet10", {"width": 4}, in_channels=1, embedding_dim=8)
        save = SaveOnTheWay(tmp_path / "half.ckpt")
        trainer = quiet_trainer(tmp_path, save, max_epochs=2, limit_val_batches=0)
        trainer.fit(module, patterns(batches=4), ckpt_path=checkpoint, weights_only=checkpoint is not None)
        assert trainer.global_step == 8
        return module

    native.disable()
    plain = fit()
    assert not taken
    (tmp_path / "half.ckpt").unlink()
    native.build()
    whole = fit()
    assert len(taken) == 9 * 8
    resumed = fit(tmp_path / "half.ckpt")
    assert len(taken) == 9 * 12
    states = [module.state_dict() for module in (plain, whole, resumed)]
    assert list(states[0]) == list(states[1])
    for name, value in states[0].items():
        assert torch.equal(states[1][name], states[2][name]), name
        torch.testing.assert_close(states[1][name], value, rtol=1e-2, atol=2e-3)
