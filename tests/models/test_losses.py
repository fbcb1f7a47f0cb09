"""Losses and miners by class_path: all those of the library train; what cannot is refused in one line."""

import inspect
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses, miners

from models.errors import InputError
from models.module import MetricLearner

# The library's own habits under newer versions of torch and numpy.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar"),
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]
TINY: dict[str, Any] = {"backbone_args": {"width": 4}, "in_channels": 1, "embedding_dim": 8, "num_classes": 6}
# What a loss must be told besides the sizes.
SPECIAL: dict[str, dict[str, Any]] = {
    "CrossBatchMemory": {"loss": {"class_path": "ContrastiveLoss"}},
    "MultipleLosses": {"losses": [{"class_path": "ArcFaceLoss"}, {"class_path": "ContrastiveLoss"}]},
    "RankedListLoss": {"margin": 0.4, "Tn": 1},
}
NOT_TRAINABLE = {
    "BaseLossWrapper": "abstract",
    "BaseMetricLossFunction": "abstract",
    "BaseMiner": "abstract",
    "EmbeddingRegularizerMixin": "abstract",
    "GenericPairLoss": "abstract",
    "WeightRegularizerMixin": "abstract",
    "ManifoldLoss": "takes no labels",
    "SelfSupervisedLoss": "takes no labels",
    "VICRegLoss": "takes no labels",
}


def public(module: Any) -> list[str]:
    names = [name for name, value in vars(module).items() if inspect.isclass(value)]
    return sorted(set(names) - set(NOT_TRAINABLE))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Six classes of four embeddings of length 1 each."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(24, 8, generator=generator), dim=1)
    return vectors.requires_grad_(), torch.arange(6).repeat_interleave(4)


def check_trains(model: MetricLearner) -> None:
    torch.manual_seed(0)
    embeddings, labels = batch()
    loss, _ = model.compute_loss(embeddings, labels)
    loss.backward()
    assert loss.isfinite()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad.any()


@pytest.mark.parametrize("name", public(losses))
def test_every_loss_of_the_library_trains_by_class_path(name: str) -> None:
    path = f"pytorch_metric_learning.losses.{name}"
    spec = {"class_path": path, "init_args": SPECIAL.get(name, {})}
    check_trains(MetricLearner(**TINY, loss=spec))


@pytest.mark.parametrize("labels", [[0] * 4, [0, 1, 2, 3], [5]], ids=["one class", "no pairs", "one image"])
@pytest.mark.parametrize("name", public(losses))
def test_batches_without_pairs_of_both_kinds_do_not_stop_a_training(name: str, labels: list[int]) -> None:
    spec = {"class_path": name, "init_args": SPECIAL.get(name, {})}
    embeddings = batch()[0].detach()[: len(labels)].requires_grad_()
    loss, _ = MetricLearner(**TINY, loss=spec).compute_loss(embeddings, torch.tensor(labels))
    loss.backward()
    if name != "NCALoss":  # the library's mean over no image with a positive
        assert loss.isfinite()


@pytest.mark.parametrize("name", public(miners))
def test_every_miner_of_the_library_trains_by_class_path(name: str) -> None:
    path = f"pytorch_metric_learning.miners.{name}"
    check_trains(MetricLearner(**TINY, miner={"class_path": path}))


def test_nested_losses_are_given_the_sizes_too() -> None:
    nested = {"losses": {"a": {"class_path": "CosFaceLoss"}, "b": {"class_path": "ContrastiveLoss"}}}
    model = MetricLearner(**TINY, loss={"class_path": "MultipleLosses", "init_args": nested})
    check_trains(model)
    assert {tuple(p.shape) for p in model.loss.parameters()} == {(8, 6)}


def test_given_sizes_stay() -> None:
    spec = {"class_path": "CosFaceLoss", "init_args": {"num_classes": 9}}
    (weights,) = MetricLearner(**TINY, loss=spec).loss.parameters()
    assert weights.shape == (8, 9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": {"class_path": "VICRegLoss"}}, "takes no labels"),
        ({"loss": {"class_path": "ManifoldLoss"}}, "takes no labels"),
        ({"loss": {"class_path": "CosFaceLoss"}, "num_classes": None}, "needs num_classes"),
        ({"loss": {"class_path": "SubCenterArcFaceLoss"}, "num_classes": None}, "needs num_classes"),
        ({"loss": {"class_path": "builtins.dict"}}, "is not an nn.Module"),
        ({"loss": {"class_path": "ArcFaceLoss"}, "memory_size": 64}, "ArcFaceLoss cannot use a memory"),
    ],
)
def test_what_cannot_train_is_refused_before_the_first_step(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MetricLearner(**TINY | values)


def test_a_batch_larger_than_the_memory_is_refused() -> None:
    with pytest.raises(InputError, match="give at least 24"):
        MetricLearner(**TINY, memory_size=16).compute_loss(*batch())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": {"class_path": "torch.nn.CrossEntropyLoss"}}, "name a loss of pytorch_metric_learning"),
        ({"loss": {"class_path": "torch.nn.TripletMarginLoss"}}, "name a loss of pytorch_metric_learning"),
        ({"loss": {"class_path": "MultiSimilarityMiner"}}, "name a loss of pytorch_metric_learning"),
        ({"miner": {"class_path": "TripletMarginLoss"}}, "name a class of pytorch_metric_learning.miners"),
        ({"loss": {"class_path": "ArcFaceLoss", "init_args": {"num_classes": 3}}}, "num_classes is 3"),
        ({"loss": {"class_path": "ArcFaceLoss", "init_args": {"embedding_size": 5}}}, "embedding_size is 5"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"backbone_lr": -1.0}, "backbone_lr is -1.0"),
        ({"proxy_lr": float("nan")}, "proxy_lr is nan"),
        ({"memory_size": -4}, "memory_size is -4"),
        ({"embedding_dim": 0}, "embedding_dim is 0"),
    ],
)
def test_values_that_torch_or_the_library_would_take_or_fail_on_later(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        MetricLearner(**TINY | values)
