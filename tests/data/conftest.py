"""Small image sets on disk, and a cache folder of the test's own."""

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# A busy machine is no failure.
settings.register_profile("kindred", deadline=None)
settings.load_profile("kindred")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's caches or data."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("KINDRED_CACHE", str(folder))
    monkeypatch.delenv("KINDRED_DATA", raising=False)
    return folder


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Encoded noise: encode(seed, size=12, kind="PNG")."""

    def make(seed: int, size: int = 12, kind: str = "PNG") -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, kind)
        return content.getvalue()

    return make


@pytest.fixture
def write_folder(tmp_path: Path, encode: Callable[..., bytes]) -> Callable[..., Path]:
    """Write images: write_folder({"class": count, ...}, name="images") returns the folder."""

    def make(classes: Mapping[str, int], name: str = "images") -> Path:
        root = tmp_path / name
        for number, (label, count) in enumerate(classes.items()):
            (root / label).mkdir(parents=True, exist_ok=True)
            for image in range(count):
                (root / label / f"{image:03d}.png").write_bytes(encode(number * 1000 + image))
        return root

    return make


@pytest.fixture
def write_zip(tmp_path: Path, encode: Callable[..., bytes]) -> Callable[..., Path]:
    """Write an archive: write_zip({"class": count, ...}, name="images.zip", wrapper="") returns its path."""

    def make(
        classes: Mapping[str, int],
        name: str = "images.zip",
        wrapper: str = "",
        compression: int = zipfile.ZIP_DEFLATED,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", compression) as archive:
            for number, (label, count) in enumerate(classes.items()):
                for image in range(count):
                    archive.writestr(f"{wrapper}{label}/{image:03d}.png", encode(number * 1000 + image))
        return path

    return make
