"""A small folder of images that a network can learn in seconds, and a run trained on it."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.bundle import Bundle
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess

CLASSES = ("circle", "cross", "stripe", "square", "dots", "wave", "star", "ring")


def _pattern(kind: int, rng: np.random.Generator, side: int) -> Image.Image:
    """A texture that depends on the class, under random phase and noise."""
    y, x = np.mgrid[0:side, 0:side] + rng.uniform(0, side, (2, 1, 1))
    angle = np.pi * kind / len(CLASSES)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (0.4 + 0.1 * (kind % 3)))
    grey = 128 + 70 * wave + rng.normal(0, 15, (side, side))
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")


def write_images(folder: Path, classes: int = 8, images: int = 8, side: int = 32) -> Path:
    """Write ``classes`` folders of ``images`` JPEG files each."""
    rng = np.random.default_rng(0)
    for kind, name in enumerate(CLASSES[:classes]):
        (folder / name).mkdir(parents=True)
        for number in range(images):
            _pattern(kind, rng, side).save(folder / name / f"{number:02d}.jpg", quality=90)
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    architecture = Architecture(backbone="conv4", embedding_dim=16)
    return Bundle(EmbeddingNetwork(architecture), architecture, Preprocess(size=28)).save(tmp_path / "bundle")


@pytest.fixture
def truncated_jpeg() -> bytes:
    buffer = io.BytesIO()
    _pattern(0, np.random.default_rng(1), 64).save(buffer, "JPEG")
    return buffer.getvalue()[:600]


FIT = (
    "fit",
    "--config=configs/model/conv4.yaml",
    "--config=configs/data/folder.yaml",
    "--model.backbone_args=null",
    "--data.image_size=28",
    "--data.classes_per_batch=4",
    "--data.batches_per_epoch=3",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
)


@pytest.fixture
def fit_options(image_folder: Path, tmp_path: Path) -> list[str]:
    """Options of a fit of two short epochs on ``image_folder``."""
    return [
        *FIT,
        f"--data.source={image_folder}",
        f"--run={tmp_path / 'run'}",
        "--trainer.max_epochs=2",
    ]
