"""The embedding gap and the pictures in TensorBoard."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models.callbacks.embedding_gap import EmbeddingGap, embedding_gap
from models.callbacks.retrieval_images import RetrievalImages
from models.module import MetricLearner
from models.network import Architecture, EmbeddingNetwork
from tests.conftest import PLAIN_LOADERS
from tests.models.conftest import quiet_trainer

pytestmark = PLAIN_LOADERS


class Table:
    def read(self, row: int) -> Image.Image:
        return Image.new("L", (20, 20), row)


def test_gap_is_zero_without_batch_statistics_and_positive_with_them() -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 1, 16, 16) * 3 + 2
    for kind, expected in (("group", 0.0), ("batch", None)):
        network = EmbeddingNetwork(Architecture("conv4", {"width": 8}, kind, in_channels=1, embedding_dim=8))
        network.head.eval()  # as a part is that is frozen
        with torch.no_grad():
            gap = float(embedding_gap(network, images, network(images)))
        assert network.training
        assert network.backbone.training
        assert not network.head.training
        if expected is None:
            assert gap > 0.01
        else:
            assert gap == pytest.approx(expected, abs=1e-6)


def test_a_run_leaves_figures_pictures_and_a_projection(tmp_path: Path, patterns: Any) -> None:
    seed_everything(0)
    data = patterns(batches=4)
    data.table = Table()
    model = MetricLearner(backbone_args={"width": 4}, in_channels=1, embedding_dim=4)
    board, table = TensorBoardLogger(tmp_path), CSVLogger(tmp_path)
    images = RetrievalImages(queries=3, neighbours=4, projected=10)
    trainer = quiet_trainer(
        tmp_path, EmbeddingGap(every=2), images, max_epochs=2, logger=[board, table], log_every_n_steps=1
    )
    trainer.fit(model, data)
    header = (Path(table.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/embedding_gap", "train/active_triplets", "val/recall@1"} <= set(header)
    events = EventAccumulator(board.log_dir)
    events.Reload()
    pictures = events.Images("val/retrievals")
    assert [picture.step for picture in pictures] == [4, 8]
    assert (pictures[0].width, pictures[0].height) == (5 * 22, 3 * 22)
    points = next(Path(board.log_dir).rglob("tensors.tsv")).read_text().splitlines()
    assert len(points) == 10
    assert len(points[0].split("\t")) == 4
