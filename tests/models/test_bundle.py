import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.bundle import Bundle
from models.errors import InputError
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import ImageError, Preprocess


def png(seed: int, side: int = 20) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def bundle() -> Bundle:
    torch.manual_seed(0)
    architecture = Architecture(backbone="conv4", in_channels=3, embedding_dim=16)
    network = EmbeddingNetwork(architecture)
    network.train()(torch.randn(8, 3, 28, 28))  # statistics that differ from their initial values
    return Bundle(network, architecture, Preprocess(size=28), info={"split_hash": "abc"})


def test_round_trip(bundle: Bundle, tmp_path: Path) -> None:
    bundle.thresholds["0.01"] = 0.5
    loaded = Bundle.load(bundle.save(tmp_path / "bundle"), device="cpu")
    images = [png(seed) for seed in range(5)]
    np.testing.assert_array_equal(loaded.embed(images), bundle.embed(images))
    assert loaded.fingerprint == bundle.fingerprint
    assert loaded.preprocess == bundle.preprocess
    assert loaded.architecture == bundle.architecture
    assert loaded.info == {"split_hash": "abc"}
    assert loaded.thresholds == {"0.01": 0.5}
    assert not loaded.network.training


def test_embeddings_are_unit_vectors_and_do_not_depend_on_the_batch(bundle: Bundle) -> None:
    images = [png(seed) for seed in range(7)]
    vectors = bundle.embed(images)
    assert vectors.shape == (7, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(bundle.embed(images, batch_size=2), vectors, atol=1e-5)


def test_embed_accepts_bytes_files_and_pillow_images(bundle: Bundle, tmp_path: Path) -> None:
    content = png(1)
    path = tmp_path / "image.png"
    path.write_bytes(content)
    vectors = bundle.embed([content, path, Image.open(io.BytesIO(content))])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_array_equal(vectors[0], vectors[2])


def test_no_images_give_an_empty_array(bundle: Bundle) -> None:
    assert bundle.embed([]).shape == (0, 16)


def test_a_broken_image_keeps_its_place_in_the_stream(bundle: Bundle) -> None:
    results = list(bundle.embed_each([png(1), b"no image", png(2)], batch_size=2))
    assert isinstance(results[1], ImageError)
    np.testing.assert_allclose(np.stack([results[0], results[2]]), bundle.embed([png(1), png(2)]), atol=1e-5)
    with pytest.raises(ImageError, match=r"^image 1: "):
        bundle.embed([png(1), b"no image"])


def test_fingerprint_changes_with_weights_and_preprocessing(bundle: Bundle) -> None:
    other = Bundle(bundle.network, bundle.architecture, Preprocess(size=29))
    assert other.fingerprint != bundle.fingerprint
    with torch.no_grad():
        next(bundle.network.parameters()).add_(1)
    assert Bundle(bundle.network, bundle.architecture, bundle.preprocess).fingerprint != bundle.fingerprint


def test_update_keeps_the_model_and_adds_what_was_measured(bundle: Bundle, tmp_path: Path) -> None:
    folder = bundle.save(tmp_path / "bundle")
    bundle.update(folder, info={"recall@1": 0.9}, thresholds={"0.001": 0.7})
    loaded = Bundle.load(folder, device="cpu")
    assert loaded.info == {"split_hash": "abc", "recall@1": 0.9}
    assert loaded.thresholds == {"0.001": 0.7}
    names = [path.name for path in sorted(folder.iterdir())]
    assert names == ["README.md", "bundle.json", "model.safetensors"]


def test_saving_replaces_a_bundle_but_nothing_else(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "bundle")
    bundle.save(tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(InputError, match="is no bundle"):
        bundle.save(tmp_path / "mine")


def edit(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(manifest | changes))


def test_damage_is_named(bundle: Bundle, tmp_path: Path) -> None:
    folder = bundle.save(tmp_path / "bundle")
    with pytest.raises(InputError, match="no bundle here"):
        Bundle.load(tmp_path)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="do not match the fingerprint"):
        Bundle.load(folder)
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
        Bundle.load(folder)


def test_an_old_or_foreign_manifest_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    folder = bundle.save(tmp_path / "bundle")
    edit(folder, format=0)
    with pytest.raises(InputError, match="format 0, this program reads 1"):
        Bundle.load(folder)
    (folder / "bundle.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        Bundle.load(folder)


def test_a_bundle_cannot_name_code_to_run(bundle: Bundle, tmp_path: Path) -> None:
    folder = bundle.save(tmp_path / "bundle")
    architecture = bundle.architecture.to_dict() | {
        "backbone": "subprocess.Popen",
        "backbone_args": {"args": ["true"]},
    }
    edit(folder, architecture=architecture)
    with pytest.raises(InputError):
        Bundle.load(folder)


def test_unknown_device(bundle: Bundle, tmp_path: Path) -> None:
    folder = bundle.save(tmp_path / "bundle")
    with pytest.raises(InputError, match="device 'gpu' is not usable"):
        Bundle.load(folder, device="gpu")
