"""Test-time augmentation: what views do to an image, and what a network with them gives."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from models.bundle import Bundle
from models.bundle_files import fingerprint_of
from models.callbacks.embedding_gap import embedding_gap
from models.errors import InputError
from models.inference import OnnxRunner, folded, to_onnx
from models.module import MetricLearner
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess
from models.tta import View, as_views

TURNS = ({"degrees": 12.0}, {"degrees": -12.0, "mirror": True})


def network(views: object = TURNS) -> EmbeddingNetwork:
    torch.manual_seed(0)
    plain = Architecture(backbone_args={"width": 4}, in_channels=1, embedding_dim=8)
    made = EmbeddingNetwork(Architecture.from_dict({**plain.to_dict(), "tta": views}))
    for _ in range(3):
        made.train()(torch.randn(8, 1, 24, 24) * 2 + 1)
    return made.eval()


def test_a_quarter_turn_and_a_mirror_image_are_exact() -> None:
    images = torch.rand(2, 3, 9, 9)
    for degrees, quarters in ((90, 1), (-90, -1), (180, 2)):
        turned = View(degrees=degrees)(images)
        torch.testing.assert_close(turned, images.rot90(quarters, (2, 3)), rtol=0, atol=1e-4)
    assert torch.equal(View(mirror=True)(images), images.flip(-1))
    both = View(degrees=90, mirror=True)(images)
    torch.testing.assert_close(both, images.flip(-1).rot90(1, (2, 3)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(40, 40), (30, 50)])
@pytest.mark.parametrize("degrees", [12.0, -30.0])
def test_a_turn_is_that_of_pillow(degrees: float, shape: tuple[int, int]) -> None:
    smooth = functional.interpolate(torch.rand(1, 1, 4, 4), size=shape, mode="bicubic")
    picture = Image.fromarray(smooth[0, 0].numpy(), mode="F")
    expected = torch.from_numpy(np.array(picture.rotate(degrees, Image.Resampling.BILINEAR)))
    turned = View(degrees=degrees)(smooth)[0, 0]
    inner = (slice(shape[0] // 3, -(shape[0] // 3)), slice(shape[1] // 3, -(shape[1] // 3)))
    torch.testing.assert_close(turned[inner], expected[inner], rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "views", [[{"degrees": 200}], [{}], [{"degrees": 0}], [{"angle": 3}], [{"degrees": "much"}]]
)
def test_unusable_views_are_named(views: list[dict[str, object]]) -> None:
    with pytest.raises(InputError, match="tta"):
        as_views(views)


def test_an_embedding_is_the_mean_over_the_views_in_evaluation_alone() -> None:
    with_views, plain = network(), network(())
    images = torch.randn(5, 1, 24, 24)
    seen = [images, *(View(**view)(images) for view in TURNS)]
    with torch.no_grad():
        expected = functional.normalize(sum(plain(each) for each in seen), dim=1)
        torch.testing.assert_close(with_views(images), expected)
        assert not torch.allclose(with_views(images), plain(images), atol=1e-3)
        torch.testing.assert_close(with_views.without_tta(images), plain(images))
        assert torch.equal(with_views.train()(images), plain.train()(images))


def test_the_gap_is_measured_without_views() -> None:
    torch.manual_seed(0)
    architecture = Architecture(normalization="group", in_channels=1, tta=as_views(TURNS))
    grouped, images = EmbeddingNetwork(architecture), torch.randn(4, 1, 24, 24)
    embeddings = grouped.without_tta(images)
    assert float(embedding_gap(grouped, images, embeddings, grouped.without_tta)) == pytest.approx(
        0, abs=1e-6
    )
    assert float(embedding_gap(grouped, images, embeddings)) > 1e-4


def test_views_travel_in_the_bundle_and_old_bundles_keep_their_fingerprint(tmp_path: Path) -> None:
    assert not {"tta", "views"} & Architecture().to_dict().keys()
    architecture = Architecture(backbone_args={"width": 4}, in_channels=1, tta=as_views(TURNS))
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture
    made, preprocess = EmbeddingNetwork(architecture).eval(), Preprocess(size=24, mode="L")
    folder = Bundle(made, architecture, preprocess).save(tmp_path / "bundle")
    loaded = Bundle.load(folder, "cpu")
    images = torch.randn(3, 1, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(images), made(images))
        torch.testing.assert_close(folded(loaded.network)(images), made(images), rtol=0, atol=1e-5)


def test_the_former_name_is_accepted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bundles and checkpoints from when it was called views load, with the same fingerprint."""
    architecture = Architecture(tta=(View(12.0), View(mirror=True)))
    former = architecture.to_dict()
    former["views"] = former.pop("tta")
    assert Architecture.from_dict(former) == architecture
    assert fingerprint_of({}, architecture, Preprocess()) == "9fc72ca59d7f6d45"
    folder = Bundle(EmbeddingNetwork(architecture), architecture, Preprocess()).save(tmp_path / "bundle")
    manifest = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**manifest, "architecture": former}))
    assert Bundle.load(folder, "cpu").architecture == architecture
    model = MetricLearner(backbone_args={"width": 4}, views=[View(mirror=True)])
    assert model.architecture.tta == (View(mirror=True),)
    assert [record.message for record in caplog.records if "model.tta" in record.message]


def test_a_checkpoint_s_values_make_the_same_module() -> None:
    model = MetricLearner(backbone_args={"width": 4}, in_channels=1, tta=[View(mirror=True)])
    again = MetricLearner(backbone_args={"width": 4}, in_channels=1, tta=model.hparams["tta"])
    assert again.architecture == model.architecture


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs the extra onnx")
def test_views_are_part_of_the_onnx_file() -> None:
    made = network()
    runner = OnnxRunner(to_onnx(made, Preprocess(size=24, mode="L")))
    for count in (1, 3):
        images = torch.randn(count, 1, 24, 24)
        with torch.inference_mode():
            torch.testing.assert_close(runner(images), made(images), rtol=0, atol=1e-5)
