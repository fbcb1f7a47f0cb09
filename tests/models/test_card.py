"""The model card, read back by the hub's own library where it is installed."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.bundle import Bundle
from models.card import GENERATED, model_card
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess

EVALUATION = {
    "source": "/home/somebody/private/birds",
    "split": "test",
    "split_hash": "abc",
    "items": 120,
    "classes": 10,
    "metrics": {"recall@1": 0.91234, "map@r": 0.5, "precision@16": 0.1},
    "intervals_95": {"recall@1": [0.9, 0.92]},
}
CALIBRATION = [{"far": 0.001, "threshold": 0.7, "low": 0.65, "high": 0.75, "tar": 0.8}]


@pytest.fixture
def bundle() -> Bundle:
    architecture = Architecture(backbone_args={"width": 4}, in_channels=1, embedding_dim=8)
    given = Preprocess(size=28, mode="L")
    return Bundle(EmbeddingNetwork(architecture), architecture, given, info={"num_classes": 40})


def front_matter(card: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert match is not None
    return yaml.safe_load(match[1])


def test_the_card_says_what_the_bundle_knows(bundle: Bundle, tmp_path: Path) -> None:
    folder = bundle.save(tmp_path / "bundle")
    card = (folder / "README.md").read_text()
    assert "Not measured yet" in card
    assert "license" not in front_matter(card)
    bundle.update(folder, info={"evaluation": EVALUATION, "calibration": CALIBRATION, "license": "cc-by-4.0"})
    card = (folder / "README.md").read_text()
    assert "| recall@1 | 0.9123 | 0.9000–0.9200 |" in card
    assert "birds, test part, 120 items, 10 classes" in card
    assert "/home/somebody" not in card
    assert "| 0.001 | 0.7000 | 0.6500–0.7500 | 0.800 |" in card
    assert bundle.fingerprint in card
    assert "`cc-by-4.0`" in card
    assert "## Limits" in card


def test_the_hub_reads_the_front_matter(bundle: Bundle, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    folder = bundle.save(tmp_path / "bundle")
    bundle.update(folder, info={"evaluation": EVALUATION, "license": "apache-2.0"})
    data = hub.ModelCard.load(folder / "README.md").data
    assert (data.license, data.library_name) == ("apache-2.0", "kindred")
    assert data.pipeline_tag == "image-feature-extraction"
    assert {"conv4", "image-retrieval"} <= set(data.tags)
    results = {result.metric_type: result for result in data.eval_results}
    assert set(results) == {"recall_at_1", "map_at_r"}
    assert results["recall_at_1"].metric_value == 0.9123
    assert (results["recall_at_1"].dataset_name, results["recall_at_1"].dataset_split) == ("birds", "test")


def test_a_card_that_somebody_wrote_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    folder = bundle.save(tmp_path / "bundle")
    own = (folder / "README.md").read_text().replace(GENERATED, "") + "\nMine.\n"
    (folder / "README.md").write_text(own)
    bundle.update(folder, info={"evaluation": EVALUATION})
    assert (folder / "README.md").read_text() == own


def test_names_cannot_break_out_of_the_card(bundle: Bundle, tmp_path: Path) -> None:
    evaluation = EVALUATION | {"source": "a|b: {c}\n---\n# d"}
    folder = bundle.save(tmp_path / "bundle")
    bundle.update(folder, info={"evaluation": evaluation, "source": "x|y"})
    card = (folder / "README.md").read_text()
    assert front_matter(card)["model-index"][0]["results"][0]["dataset"]["name"].startswith("a|b")
    assert "x\\|y" in card


def test_a_description_without_the_newer_keys_makes_a_card(bundle: Bundle, tmp_path: Path) -> None:
    manifest = bundle._manifest()
    for key in ("info", "exports", "training_classes"):
        del manifest[key]
    card = model_card(manifest, tmp_path / "README.md")
    assert card is not None
    assert front_matter(card)["library_name"] == "kindred"
