"""TensorBoard images: example retrievals after each validation, an embedding projection at the end."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageOps


class RetrievalImages(Callback):
    """Show the nearest neighbours of a few validation images, and validation images in the projector.

    Needs a TensorBoardLogger, a data module with `table` and `preprocess`, and a module with `validated`, as
    MetricLearner has; without them it does nothing.
    The queries stay the same from epoch to epoch.

    Args:
        queries: rows of the picture, spread evenly over the validation images.
        neighbours: images beside each query, nearest first. A green edge marks the query's own class, red
            another.
        projected: maximum number of images in the projector.
    """

    def __init__(self, queries: int = 8, neighbours: int = 8, projected: int = 1000) -> None:
        self.queries = queries
        self.neighbours = neighbours
        self.projected = projected

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the retrievals."""
        writer, validated = _writer(trainer), getattr(pl_module, "validated", None)
        if writer is None or validated is None:
            return
        embeddings, labels, indices = (tensor.cpu() for tensor in validated)
        rows = torch.linspace(0, len(labels) - 1, min(self.queries, len(labels))).long()
        similarity = embeddings[rows] @ embeddings.T
        similarity[torch.arange(len(rows)), rows] = -torch.inf
        nearest = similarity.topk(min(self.neighbours, len(labels) - 1)).indices
        sheet = []
        for row, found in zip(rows.tolist(), nearest.tolist(), strict=True):
            edges = [(0, 160, 0) if labels[other] == labels[row] else (200, 0, 0) for other in found]
            tiles = [
                np.asarray(ImageOps.expand(_image(trainer, int(indices[at])), 3, edge))
                for at, edge in zip([row, *found], [(128, 128, 128), *edges], strict=True)
            ]
            sheet.append(np.concatenate(tiles, axis=1))
        picture = np.concatenate(sheet)
        writer.add_image("val/retrievals", picture, trainer.global_step, dataformats="HWC")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the projector's files."""
        writer, validated = _writer(trainer), getattr(pl_module, "validated", None)
        if writer is None or validated is None:
            return
        embeddings, labels, indices = (tensor.cpu() for tensor in validated)
        rows = torch.linspace(0, len(labels) - 1, min(self.projected, len(labels))).long()
        pictures = np.stack([np.asarray(_image(trainer, int(indices[row]))) for row in rows.tolist()])
        thumbnails = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        if thumbnails.shape[-1] > 32:  # the projector takes one sprite of at most 8192 px
            thumbnails = torch.nn.functional.interpolate(thumbnails, 32, mode="area")
        names = [str(int(label)) for label in labels[rows]]
        writer.add_embedding(embeddings[rows], names, thumbnails, trainer.global_step, "val/embedding")


def _writer(trainer: Trainer) -> Any:
    data = getattr(trainer, "datamodule", None)
    if trainer.sanity_checking or not trainer.is_global_zero or getattr(data, "table", None) is None:
        return None
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            return logger.experiment
    return None


def _image(trainer: Trainer, index: int) -> Image.Image:
    data = trainer.datamodule  # type: ignore[attr-defined]
    image: Image.Image = data.preprocess.open(data.table.read(index))
    return image.convert("RGB")
