"""Synthetic data that a tiny network learns in seconds."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from models.preprocess import Preprocess

Batch = dict[str, Tensor]


def quiet_trainer(folder: Path, *callbacks: lightning.Callback, **values: Any) -> lightning.Trainer:
    """A Trainer on the CPU that prints, logs and saves nothing unless `values` say otherwise."""
    quiet: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet |= {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
    return lightning.Trainer(**(quiet | {"callbacks": [*callbacks]} | values))


class Patterns(lightning.LightningDataModule):
    """Noisy copies of a random coarse pattern for each class; the classes validated are not those trained."""

    def __init__(self, classes: int = 12, noise: float = 0.7, batches: int = 20, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randn(2 * classes, 1, 4, 4, generator=generator)
        self.patterns = torch.nn.functional.interpolate(coarse, 16)
        self.classes, self.noise, self.batches, self.seed = classes, noise, batches, seed
        self.preprocess = Preprocess(16, "L")
        self.split_hash = "0" * 64
        self.num_classes = classes

    def draw(self, labels: Tensor, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(labels), 1, 16, 16, generator=generator)
        images = self.patterns[labels] + self.noise * noise
        return {"image": images, "label": labels, "index": torch.arange(len(labels))}

    def train_dataloader(self) -> DataLoader[Batch]:
        batches = []
        for number in range(self.batches):
            generator = torch.Generator().manual_seed(1000 * self.seed + number)
            chosen = torch.randperm(self.classes, generator=generator)[:6]
            batches.append(self.draw(chosen.repeat_interleave(4), 1000 * self.seed + number))
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Batch]:
        labels = torch.arange(self.classes, 2 * self.classes).repeat_interleave(6)
        whole = self.draw(labels, 77)
        parts = [{key: value[i : i + 20] for key, value in whole.items()} for i in range(0, len(labels), 20)]
        return DataLoader(parts, batch_size=None)  # type: ignore[arg-type]


@pytest.fixture
def patterns() -> type[Patterns]:
    return Patterns
