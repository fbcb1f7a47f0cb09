"""MetricLearner under a plain Trainer: it learns, logs, resumes, and its checkpoints run no code."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import Tensor
from torch.optim import lr_scheduler

from models.callbacks.averaging import MovingAverage
from models.errors import InputError
from models.losses import ResumableMemory
from models.module import MetricLearner
from models.network import Architecture, EmbeddingNetwork
from models.renorm import BatchRenorm
from models.schedules import WarmupCosine
from tests.conftest import PLAIN_LOADERS
from tests.models.conftest import quiet_trainer

pytestmark = [*PLAIN_LOADERS, pytest.mark.filterwarnings("ignore:.*lr_scheduler.step\\(\\)")]
TINY: dict[str, Any] = {"backbone_args": {"width": [8, 8, 16, 32]}, "in_channels": 1, "embedding_dim": 8}


def trainer(folder: Path, *callbacks: Callback, **values: Any) -> Trainer:
    return quiet_trainer(folder, *callbacks, **({"max_epochs": 3, "log_every_n_steps": 1} | values))


def test_learns_and_logs(tmp_path: Path, patterns: Any) -> None:
    seed_everything(0)
    data, model = patterns(), MetricLearner(**TINY)
    run = trainer(tmp_path)
    before = run.validate(model, data, verbose=False)[0]["val/recall@1"]
    run = trainer(tmp_path, max_epochs=5)
    run.fit(model, data)
    logged = run.callback_metrics
    assert logged["val/recall@1"] > before + 0.2
    assert {"train/loss", "train/active_triplets", "train/ap_distance", "train/an_distance"} <= set(logged)
    assert 0 < logged["train/active_triplets"] < 1
    assert 0 < logged["train/embedding_variance"] <= 1
    assert {"val/recall@8", "val/map@r", "val/r_precision"} <= set(logged)


def test_a_checkpoint_is_enough_for_a_bundle_and_runs_no_code(tmp_path: Path, patterns: Any) -> None:
    model = MetricLearner(**TINY)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=2)
    run.fit(model, patterns())
    run.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    described = json.loads(json.dumps(saved["kindred"]))
    assert described["split_hash"] == "0" * 64
    assert described["preprocess"]["size"] == 16
    assert described["num_classes"] == 12
    network = EmbeddingNetwork(Architecture.from_dict(described["architecture"]))
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in saved["state_dict"].items() if k.startswith(prefix)}
    network.load_state_dict(weights)
    images = torch.randn(3, 1, 16, 16)
    assert torch.equal(network.eval()(images), model.eval()(images))


@pytest.mark.parametrize(
    "values",
    [
        {"loss": {"class_path": "ProxyAnchorLoss"}, "num_classes": 12},
        {"loss": {"class_path": "pytorch_metric_learning.losses.ArcFaceLoss"}, "num_classes": 12},
        {"loss": {"class_path": "MultiSimilarityLoss"}, "miner": {"class_path": "MultiSimilarityMiner"}},
        {
            "loss": {
                "class_path": "ContrastiveLoss",
                "init_args": {"distance": {"class_path": "pytorch_metric_learning.distances.LpDistance"}},
            }
        },
        {"loss": {"class_path": "SupConLoss"}, "memory_size": 64},
        {"memory_size": 48},
    ],
)
def test_losses_by_class_path_train_and_load_from_a_checkpoint(
    tmp_path: Path, patterns: Any, values: dict[str, Any]
) -> None:
    seed_everything(0)
    model = MetricLearner(**TINY, **values)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=4)
    run.fit(model, patterns())
    assert run.callback_metrics["train/loss"].isfinite()
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = MetricLearner.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    for (name, mine), theirs in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    if model.memory is not None:
        assert again.memory is not None
        assert torch.equal(model.memory.embedding_memory, again.memory.embedding_memory)
        assert model.memory.queue_idx == again.memory.queue_idx


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": {"class_path": "ArcFaceLoss"}}, "num_classes"),
        ({"loss": {"class_path": "TripletLoss"}}, "TripletLoss"),
        ({"loss": {"class_path": "TripletMarginLoss", "init_args": {"magrin": 1}}}, "magrin"),
        ({"loss": {"init_args": {}}}, "class_path"),
        ({"miner": {"class_path": "json.dumps"}}, "json.dumps"),
    ],
)
def test_wrong_losses_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MetricLearner(**TINY, **values)


def test_images_of_another_number_of_channels_are_refused(tmp_path: Path, patterns: Any) -> None:
    with pytest.raises(InputError, match="in_channels=1"):
        trainer(tmp_path).fit(MetricLearner(), patterns())


@pytest.mark.parametrize("name", ["samples_per_class", "classes_per_batch"])
def test_batches_without_pairs_are_refused_unless_the_loss_has_proxies(
    tmp_path: Path, patterns: Any, name: str
) -> None:
    data = patterns(batches=1)
    setattr(data, name, 1)
    with pytest.raises(InputError, match=f"{name} is 1: FaceNetTripletLoss trains on pairs"):
        trainer(tmp_path).fit(MetricLearner(**TINY), data)
    proxies = {"class_path": "pytorch_metric_learning.losses.ProxyAnchorLoss"}
    trainer(tmp_path, max_epochs=1).fit(MetricLearner(**TINY, num_classes=12, loss=proxies), data)


def test_duplicates_count_once_in_validation(tmp_path: Path, patterns: Any) -> None:
    """A padded distributed sampler repeats images; a copy at distance 0 must not be a hit."""
    model, data = MetricLearner(**TINY), patterns()
    expected = trainer(tmp_path).validate(model, data, verbose=False)[0]
    batches = list(data.val_dataloader())
    twice = torch.utils.data.DataLoader([*batches, batches[0]], batch_size=None)
    assert trainer(tmp_path).validate(model, twice, verbose=False)[0] == expected


def test_the_loss_is_computed_in_float32_under_autocast(tmp_path: Path, patterns: Any) -> None:
    seen: list[torch.dtype] = []

    class Watched(MetricLearner):
        def compute_loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            loss, watched = super().compute_loss(embeddings, labels)
            seen.extend((embeddings.dtype, loss.dtype))
            return loss, watched

    run = trainer(tmp_path, max_epochs=1, limit_train_batches=2, precision="bf16-mixed")
    run.fit(Watched(**TINY), patterns())
    assert set(seen) == {torch.float32}


def test_a_backbone_built_for_another_size_is_refused(tmp_path: Path, patterns: Any) -> None:
    model = MetricLearner(backbone_args={"width": 4, "pooling": "flatten", "image_size": 32}, in_channels=1)
    with pytest.raises(InputError, match="image_size to 16"):
        trainer(tmp_path).fit(model, patterns())


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_goes_on_as_if_never_interrupted(tmp_path: Path, patterns: Any) -> None:
    """Memory, schedules, optimizer, moving average and statistics: the same weights bit for bit."""

    def run(folder: Path, checkpoint: Path | None = None) -> MetricLearner:
        seed_everything(1)
        model = MetricLearner(**TINY, memory_size=72)
        callbacks = [ModelCheckpoint(folder, "{epoch}", save_top_k=-1, every_n_epochs=1), MovingAverage()]
        values = {"enable_checkpointing": True, "max_epochs": 3, "limit_train_batches": 10}
        training = trainer(folder, *callbacks, **values)
        training.fit(model, patterns(), ckpt_path=checkpoint, weights_only=True)
        return model

    whole = run(tmp_path / "whole")
    resumed = run(tmp_path / "resumed", tmp_path / "whole" / "epoch=0.ckpt")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        if isinstance(a, Tensor):
            assert torch.equal(a, b), name
    assert isinstance(whole.memory, ResumableMemory)
    assert isinstance(resumed.memory, ResumableMemory)
    assert torch.equal(whole.memory.embedding_memory, resumed.memory.embedding_memory)


def test_a_memory_of_another_size_is_refused() -> None:
    state = MetricLearner(**TINY, memory_size=64).state_dict()
    with pytest.raises(InputError, match="make them equal"):
        MetricLearner(**TINY, memory_size=128).load_state_dict(state)


def test_an_endless_run_needs_a_schedule_of_its_own(tmp_path: Path, patterns: Any) -> None:
    with pytest.raises(InputError, match="max_steps"):
        trainer(tmp_path, max_epochs=-1).fit(MetricLearner(**TINY), patterns())


@pytest.mark.parametrize(("given", "used"), [({"momentum": 0.03}, 0.03), ({}, 0.055)])
def test_renorms_momentum_falls_unless_it_was_given(tmp_path: Path, patterns: Any, given, used) -> None:
    model = MetricLearner(**TINY, normalization_args=given)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=4, limit_val_batches=0)
    seen: list[float] = []
    layer = next(m for m in model.modules() if isinstance(m, BatchRenorm))
    layer.register_forward_pre_hook(lambda *_: seen.append(float(layer.momentum)))
    run.fit(model, patterns())
    assert seen[1] == pytest.approx(used)


@pytest.mark.parametrize(
    ("kind", "given", "frozen"),
    [
        ("renorm", None, True),
        ("sync_renorm", {}, True),
        ("renorm", {"frozen": False}, False),
        ("renorm", {"rmax": 2}, False),
    ],
)
def test_renorm_keeps_pretrained_statistics_unless_told_otherwise(
    tmp_path: Path, patterns: Any, kind: Any, given: Any, frozen: bool
) -> None:
    torch.save(MetricLearner(**TINY).network.backbone.state_dict(), tmp_path / "weights.pt")
    model = MetricLearner(
        **TINY, normalization=kind, normalization_args=given, weights=str(tmp_path / "weights.pt")
    )
    layers = [m for m in model.modules() if isinstance(m, BatchRenorm)]
    before = [layer.running_var.clone() for layer in layers]
    trainer(tmp_path, max_epochs=1, limit_train_batches=2, limit_val_batches=0).fit(model, patterns())
    same = [torch.equal(old, layer.running_var) for old, layer in zip(before, layers, strict=True)]
    assert layers
    assert all(same) if frozen else not any(same)
    assert all(layer.weight.grad is not None for layer in layers)
    assert model.architecture.normalization_args == ({"frozen": True} if frozen else given)


@pytest.mark.parametrize(
    ("kind", "given"), [("frozen_batch", None), ("renorm", {"frozen": True}), ("renorm", None)]
)
def test_frozen_statistics_stay_without_a_warning(
    tmp_path: Path, patterns: Any, kind: Any, given: dict[str, Any] | None
) -> None:
    """Lightning warns of modules in evaluation mode at the start of a training, and warnings fail tests."""
    torch.save(MetricLearner(**TINY).network.backbone.state_dict(), tmp_path / "weights.pt")
    model = MetricLearner(
        **TINY, normalization=kind, normalization_args=given, weights=str(tmp_path / "weights.pt")
    )
    before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    trainer(tmp_path, max_epochs=2, limit_train_batches=2).fit(model, patterns())
    after = dict(model.named_buffers())
    assert before
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    images = torch.randn(5, 1, 16, 16)
    with torch.no_grad():
        evaluated = model.eval()(images)
        trained = model.eval().train()(images)
    assert all(module.training for module in model.modules())
    assert torch.allclose(trained, evaluated, atol=1e-6)


def test_renorm_without_pretrained_weights_is_not_frozen() -> None:
    assert not any(m.frozen for m in MetricLearner(**TINY).modules() if isinstance(m, BatchRenorm))


@pytest.mark.parametrize(("given", "ends"), [({}, (3, 5)), ({"rmax": 2}, (2, 5)), ({"dmax": 2}, (3, 2))])
def test_renorms_limits_end_at_those_given(tmp_path: Path, patterns: Any, given, ends) -> None:
    model = MetricLearner(**TINY, normalization_args=given)
    layer = next(m for m in model.modules() if isinstance(m, BatchRenorm))
    trainer(tmp_path, max_epochs=1, limit_train_batches=4, limit_val_batches=0).fit(model, patterns())
    assert (float(layer.rmax), float(layer.dmax)) == ends


def test_backbone_head_and_proxies_have_learning_rates_of_their_own(tmp_path: Path, patterns: Any) -> None:
    loss = {"class_path": "ProxyAnchorLoss"}
    model = MetricLearner(**TINY, loss=loss, num_classes=12, backbone_lr=1e-5, proxy_lr=0.1)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    run.fit(model, patterns())
    rates = {
        id(parameter): group["initial_lr"]
        for group in run.optimizers[0].param_groups
        for parameter in group["params"]
    }
    assert {rates[id(p)] for p in model.network.backbone.parameters()} == {1e-5}
    assert {rates[id(p)] for p in model.network.head.parameters()} == {1e-3}
    assert {rates[id(p)] for p in model.loss.parameters()} == {0.1}
    assert len(rates) == len(list(model.parameters()))


def test_the_backbone_waits_while_the_head_trains(tmp_path: Path, patterns: Any) -> None:
    model = MetricLearner(**TINY, freeze_backbone_steps=2)
    data = patterns()

    def after(steps: int) -> tuple[Tensor, Tensor]:
        trainer(tmp_path, max_epochs=-1, max_steps=steps).fit(model, data)
        return (
            next(model.network.backbone.parameters()).detach().clone(),
            model.network.head.weight.detach().clone(),  # type: ignore[union-attr]
        )

    start = next(model.network.backbone.parameters()).detach().clone()
    backbone, head = after(2)
    assert torch.equal(backbone, start)
    later, moved = after(3)
    assert not torch.equal(later, start)
    assert not torch.equal(moved, head)


def resumable(folder: Path, **values: Any) -> Any:
    """A run of two steps an epoch that keeps a checkpoint of its end."""
    return trainer(folder, limit_train_batches=2, **values)


@pytest.mark.parametrize(
    ("scheduler", "given", "interval"),
    [
        (lambda o: lr_scheduler.StepLR(o, 1), None, "epoch"),
        (lambda o: lr_scheduler.StepLR(o, 1), "step", "step"),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 3), None, "epoch"),
        (WarmupCosine, None, "step"),
        (WarmupCosine, "epoch", "epoch"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=6), None, "step"),
        (lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=False), None, "step"),
    ],
)
def test_schedulers_step_when_lightnings_users_expect_it(
    tmp_path: Path, patterns: Any, scheduler: Any, given: Any, interval: str
) -> None:
    model = MetricLearner(**TINY, scheduler=scheduler, scheduler_interval=given)
    run = resumable(tmp_path, limit_val_batches=0)
    run.fit(model, patterns())
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == {"epoch": 3, "step": 6}[interval]


@pytest.mark.parametrize(
    ("scheduler", "given", "monitor"),
    [
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, "max"), None, "val/map@r"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, "min"), None, "train/loss"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, "max"), "val/recall@1", "val/recall@1"),
        (lambda o: ReduceLROnPlateau(o, "val/recall@2", "max"), None, "val/recall@2"),
    ],
)
def test_a_plateau_follows_a_figure_and_goes_on(
    tmp_path: Path, patterns: Any, scheduler: Any, given: Any, monitor: str
) -> None:
    def fit(epochs: int, checkpoint: Path | None = None, lr: float = 1e-3) -> Any:
        model = MetricLearner(
            **TINY,
            optimizer=lambda p: torch.optim.AdamW(p, lr=lr),
            scheduler=scheduler,
            scheduler_monitor=given,
        )
        run = resumable(tmp_path, max_epochs=epochs)
        run.fit(model, patterns(), ckpt_path=checkpoint, weights_only=True)
        return run

    run = fit(2)
    run.save_checkpoint(tmp_path / "end.ckpt")
    followed = run.lr_scheduler_configs[0]
    assert followed.monitor == monitor
    assert followed.scheduler.last_epoch == 2
    assert followed.scheduler.best == pytest.approx(float(run.callback_metrics[monitor]), rel=0.5)
    resumed = fit(3, tmp_path / "end.ckpt", lr=1e-2)
    assert resumed.lr_scheduler_configs[0].scheduler.last_epoch == 3
    assert resumed.optimizers[0].param_groups[0]["lr"] == 1e-2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": lambda p: torch.optim.AdamW(p, lr=-1.0)}, "Invalid learning rate"),
        ({"scheduler": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=4)}, "run after 6"),
        ({"scheduler": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=2.0)}, "Factor should be"),
    ],
)
def test_unusable_optimizers_and_schedulers_are_told_before_the_first_step(
    tmp_path: Path, patterns: Any, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        resumable(tmp_path).fit(MetricLearner(**TINY, **values), patterns())


def test_a_checkpoint_of_other_weights_is_refused_in_every_stage(tmp_path: Path, patterns: Any) -> None:
    run = resumable(tmp_path, max_epochs=1)
    run.fit(MetricLearner(**TINY), patterns())
    run.save_checkpoint(tmp_path / "whole.ckpt")
    run.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    other = MetricLearner(**TINY | {"embedding_dim": 4})
    with pytest.raises(InputError, match="embedding_dim was 8 and is 4"):
        trainer(tmp_path).fit(other, patterns(), ckpt_path=tmp_path / "whole.ckpt", weights_only=True)
    with pytest.raises(InputError, match="embedding_dim was 8 and is 4"):
        trainer(tmp_path).validate(other, patterns(), ckpt_path=tmp_path / "weights.ckpt", weights_only=True)
    with pytest.raises(InputError, match="weights alone"):
        trainer(tmp_path).fit(
            MetricLearner(**TINY), patterns(), ckpt_path=tmp_path / "weights.ckpt", weights_only=True
        )
    proxies = {"loss": {"class_path": "ProxyAnchorLoss"}, "num_classes": 3}
    with pytest.raises(InputError, match=r"lacks loss.proxies \(.*loss was None and is .*ProxyAnchor"):
        trainer(tmp_path).fit(
            MetricLearner(**TINY, **proxies),  # type: ignore[arg-type]
            patterns(),
            ckpt_path=tmp_path / "whole.ckpt",
            weights_only=True,
        )
    with pytest.warns(UserWarning, match="loss.proxies"):
        loose = MetricLearner.load_from_checkpoint(
            tmp_path / "whole.ckpt", strict=False, weights_only=True, **proxies
        )
    assert loose.loss.proxies.shape == (3, 8)


def test_frozen_layers_do_not_train(tmp_path: Path, patterns: Any) -> None:
    model = MetricLearner(**TINY, frozen_layers=["blocks.0"])
    before = {name: value.clone() for name, value in model.network.backbone.state_dict().items()}
    trainer(tmp_path, max_epochs=1).fit(model, patterns())
    for name, value in model.network.backbone.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, before[name]) == name.startswith("blocks.0."), name
    with pytest.raises(
        InputError, match=r"frozen_layers: 'blocks.9' is no part of the backbone \(blocks, pool\)"
    ):
        MetricLearner(**TINY, frozen_layers=["blocks.9"])
