"""One pass over the images for all models: nothing is decoded twice, and nothing comes out differently."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from app.commands.evaluate import evaluate
from app.evaluation.baselines import HISTOGRAM_SIZE, centred, colour_histogram, raw_pixels
from app.evaluation.embed_images import embed_images
from app.evaluation.evaluated_models import EvaluatedModel
from app.evaluation.evaluation_set import select_images
from models.bundle import Bundle
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import DecodeLimits, Preprocess, decode_image

SIZES = [(300, 500), (90, 700), (650, 420), (48, 40)]
ENDINGS = ["png", "jpg", "grey.jpg", "turned.jpg", "cmyk.jpg"]


def bundle(preprocess: Preprocess) -> Bundle:
    architecture = Architecture(in_channels=preprocess.channels, embedding_dim=8)
    torch.manual_seed(0)
    return Bundle(EmbeddingNetwork(architecture), architecture, preprocess)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three classes; every size in several encodings, and a file that is no image."""
    monkeypatch.setenv("KINDRED_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for label in range(3):
        folder = tmp_path / "photos" / f"class_{label}"
        folder.mkdir(parents=True)
        for number, (size, ending) in enumerate(zip(SIZES * 2, ENDINGS + ENDINGS[:3], strict=True)):
            image = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize(size)
            mode = {"grey.jpg": "L", "cmyk.jpg": "CMYK"}.get(ending, "RGB")
            exif = Image.Exif()
            exif[0x0112] = 6 if ending == "turned.jpg" else 1
            image.convert(mode).save(folder / f"{number}.{ending}", exif=exif)
    (tmp_path / "photos" / "class_0" / "broken.jpg").write_bytes(b"\xff\xd8\xff, but no more")
    return tmp_path / "photos"


def test_each_image_is_decoded_once_for_all_models(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    load = ImageFile.ImageFile.load

    def counted(image: ImageFile.ImageFile) -> object:
        if image.tile:
            decoded.append(image.format or "")
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    saved = [bundle(Preprocess(64)).save(tmp_path / name / "bundle") for name in ("one", "two")]
    evaluate(bundle=saved, data=str(photos), split="all", out=tmp_path / "out", report=False, device="cpu")
    assert len(decoded) == 3 * len(SIZES) * 2
    decoded.clear()
    saved.append(bundle(Preprocess(256)).save(tmp_path / "large" / "bundle"))
    evaluate(bundle=saved, data=str(photos), split="all", out=tmp_path / "out", report=False, device="cpu")
    assert decoded.count("PNG") == 3 * 2  # of a JPEG another scale
    assert len(decoded) < 2 * 3 * len(SIZES) * 2


def test_one_pass_equals_decoding_for_each_model_alone(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.evaluation.embed_images.BATCH_SIZE", 7)
    settings = [
        Preprocess(64),
        Preprocess((96, 256)),
        Preprocess(32, mode="L"),
        Preprocess(200, interpolation="bicubic"),
    ]
    models = [EvaluatedModel(str(n), bundle(each)) for n, each in enumerate(settings)]
    items = select_images(str(photos), "all")
    baselines, good, broken = embed_images(items, models, lambda: None)
    assert "broken.jpg" in broken[0]
    assert len(broken) == (~good).sum() == 1
    contents = [items.images.read(row) for row in np.flatnonzero(good)]
    for model in models:
        assert model.bundle is not None
        np.testing.assert_array_equal(model.vectors, model.bundle.embed(contents, 7))
    images = [decode_image(content, "RGB", DecodeLimits(), at_least=HISTOGRAM_SIZE) for content in contents]
    pixels, histograms = (model.vectors for model in baselines)
    np.testing.assert_array_equal(pixels, centred(np.stack([raw_pixels(image) for image in images])))
    np.testing.assert_array_equal(histograms, np.stack([colour_histogram(image) for image in images]))
