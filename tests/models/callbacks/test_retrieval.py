"""The callback against the metrics computed directly, with items repeated as a padded sampler does."""

from collections.abc import Iterator
from pathlib import Path

import lightning
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from models.callbacks.retrieval import RetrievalEvaluation
from models.errors import InputError
from models.metrics import retrieval_metrics
from tests.models.conftest import quiet_trainer

VECTORS = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 7
INDEX = torch.arange(40)


class Identity(lightning.LightningModule):
    def __init__(self, complete: bool = True) -> None:
        super().__init__()
        self.complete = complete

    def test_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        outputs = dict(zip(("embedding", "label", "index"), batch, strict=True))
        return outputs if self.complete else {"embedding": batch[0]}


def run(module: Identity, folder: Path) -> dict[str, float]:
    repeated = torch.cat([INDEX, INDEX[:8]])
    data = DataLoader(TensorDataset(VECTORS[repeated], LABELS[repeated], repeated), batch_size=16)
    (figures,) = quiet_trainer(folder, RetrievalEvaluation()).test(module, data, verbose=False)
    return dict(figures)


@pytest.mark.filterwarnings("ignore:The 'test_dataloader' does not have many workers")
def test_figures_equal_those_computed_directly(tmp_path: Path) -> None:
    figures = run(Identity(), tmp_path)
    for name, value in retrieval_metrics(VECTORS, LABELS).items():
        assert figures[f"test/{name}"] == pytest.approx(value, abs=1e-6)


@pytest.mark.filterwarnings("ignore:The 'test_dataloader' does not have many workers")
def test_a_step_that_returns_too_little_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="embedding, label, index"):
        run(Identity(complete=False), tmp_path)


class NothingReadable:
    """A loader that, like ours, leaves out every image that cannot be read."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[list[Tensor]]:
        return iter([])


def test_a_set_of_unreadable_images_is_named(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, RetrievalEvaluation())
    with pytest.raises(InputError, match="none of the test images can be read"):
        trainer.test(Identity(), NothingReadable(), verbose=False)
