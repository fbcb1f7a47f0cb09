"""The fitted head against a full decomposition; who sees it, and that training does not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, seed_everything
from torch import Tensor
from torch.nn.functional import linear, normalize

from models.callbacks.averaging import MovingAverage
from models.callbacks.pca_head import PCAHead, fitted_projection, principal_directions
from models.errors import InputError
from models.module import MetricLearner
from tests.conftest import PLAIN_LOADERS
from tests.models.conftest import quiet_trainer

pytestmark = PLAIN_LOADERS
TINY: dict[str, Any] = {"backbone_args": {"width": 6}, "in_channels": 1, "embedding_dim": 4}
VIEWS = [{"degrees": 10}, {"mirror": True}]


@pytest.fixture
def data(patterns: Any) -> Any:
    class WithTrainingImages(patterns):
        def training_images(self, count: int) -> list[dict[str, Tensor]]:
            whole = self.draw(torch.arange(count) % self.classes, 5)
            return [{key: value[i : i + 16] for key, value in whole.items()} for i in range(0, count, 16)]

    return WithTrainingImages()


def train(
    folder: Path, data: Any, *callbacks: Callback, model: MetricLearner | None = None, **values: Any
) -> MetricLearner:
    seed_everything(0)
    model = model or MetricLearner(**TINY, tta=VIEWS)
    quiet_trainer(folder, *callbacks, **({"max_epochs": 2} | values)).fit(model, data)
    return model


@given(images=st.integers(3, 60), width=st.integers(3, 40), count=st.integers(1, 3), seed=st.integers(0, 99))
def test_directions_hold_as_much_as_a_full_decomposition(images, width, count, seed) -> None:
    features = torch.randn(images, width, generator=torch.Generator().manual_seed(seed)).relu()
    state = torch.get_rng_state()
    found = principal_directions(features, count)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, principal_directions(features, count))
    assert torch.allclose(found @ found.T, torch.eye(count), atol=1e-4)
    best = torch.linalg.svdvals(features)[:count].square().sum()
    assert float((features @ found.T).square().sum()) == pytest.approx(float(best), rel=1e-3, abs=1e-5)


def test_fewer_images_than_directions_leave_zeros() -> None:
    found = principal_directions(torch.randn(3, 6), 5)
    assert torch.allclose(found @ found.T, torch.diag(torch.tensor([1.0, 1, 1, 0, 0])), atol=1e-5)


@given(share=st.floats(0.01, 0.99), width=st.integers(1, 12), seed=st.integers(0, 99))
def test_inner_products_are_those_of_features_and_head_outputs_weighed(share, width, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(30, width, generator=generator, dtype=torch.float64)
    head = torch.randn(width, width, generator=generator, dtype=torch.float64)
    expected = torch.zeros(30, 30, dtype=torch.float64)
    for weight, part in ((1 - share, features), (share, features @ head.T)):
        expected += weight * part @ part.T / part.square().sum(1).mean()
    found = features @ fitted_projection(features, head, share).T
    assert torch.allclose(found @ found.T, expected, atol=1e-6)


def test_shares_of_nothing_and_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    features, head = torch.randn(50, 9, generator=generator), torch.randn(4, 9, generator=generator)
    alone = features @ fitted_projection(features, head, 0).T
    first = features @ principal_directions(features, 4).T
    trained = features @ fitted_projection(features, head, 1).T
    for found, expected in ((alone, first), (trained, features @ head.T)):
        found, expected = normalize(found), normalize(expected)
        assert torch.allclose(found @ found.T, expected @ expected.T, atol=1e-5)
    assert fitted_projection(torch.zeros(5, 9), head, 0.5).isfinite().all()


@pytest.mark.parametrize("average_first", [True, False])
def test_validation_has_the_fitted_head_over_the_averaged_weights(
    tmp_path: Path, data: Any, average_first: bool
) -> None:
    head = PCAHead(images=40)
    average = MovingAverage(decay=0.9)
    model = train(tmp_path, data, *((average, head) if average_first else (head, average)))
    # At the end of training the model has the averaged weights, those of the last validation.
    network = model.network.eval()
    with torch.no_grad():
        sample = torch.cat([network.features(batch["image"]) for batch in data.training_images(40)])
        images = torch.cat([batch["image"] for batch in data.val_dataloader()])
        projection = fitted_projection(sample, network.head.weight, 0.25)
        expected = 0
        for view in (images, *(view(images) for view in model.architecture.tta)):
            expected = expected + normalize(linear(network.features(view), projection))
    assert model.validated is not None
    assert torch.allclose(model.validated[0], normalize(expected), atol=1e-4)
    assert torch.equal(head.state_dict()["directions"], network.projection)


def test_training_does_not_notice(tmp_path: Path, data: Any) -> None:
    plain = train(tmp_path, data).network.state_dict()
    fitted = train(tmp_path, data, PCAHead(images=40)).network.state_dict()
    assert plain.keys() == fitted.keys()
    assert all(torch.equal(plain[name], fitted[name]) for name in plain)


def test_without_validation_it_is_fitted_after_the_epoch(tmp_path: Path, data: Any) -> None:
    head = PCAHead(images=40, head_weight=0)
    network = train(tmp_path, data, head, limit_val_batches=0).network.eval()
    with torch.no_grad():
        sample = torch.cat([network.features(batch["image"]) for batch in data.training_images(40)])
    found, expected = head.state_dict()["directions"], principal_directions(sample, 4)
    assert torch.allclose(normalize(found), normalize(expected), atol=1e-5)


def test_what_it_cannot_serve_is_refused(tmp_path: Path, data: Any, patterns: Any) -> None:
    headless = MetricLearner(**TINY | {"head": "none", "embedding_dim": 6})
    with pytest.raises(InputError, match="head: linear"):
        train(tmp_path, data, PCAHead(), model=headless)
    with pytest.raises(InputError, match=r"fraction between 0 and 1, not 1\.5"):
        PCAHead(head_weight=1.5)
    with pytest.raises(InputError, match="training_images"):
        train(tmp_path, patterns(), PCAHead())
    with pytest.raises(InputError, match="7 exceeds the backbone's 6 features"):
        train(tmp_path, data, PCAHead(), model=MetricLearner(**TINY | {"embedding_dim": 7}))
    with pytest.raises(InputError, match=r"shape \(3, 6\) does not fit"):
        MetricLearner(**TINY).network.adopt(torch.zeros(3, 6))
