"""The model card: a bundle's README.md, made from its description by the template ``card.md.jinja``.

The front matter follows the Hugging Face hub's model card specification (huggingface/hub-docs, modelcard.md).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from models.preprocess import Preprocess

GENERATED = "<!-- Made from bundle.json by kindred. Remove this line and kindred leaves your text alone. -->"
_TASK = "image-feature-extraction"
_SHOWN = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision", "mrr")


def model_card(manifest: Mapping[str, Any], path: Path) -> str | None:
    """The card of a bundle with this ``bundle.json``; None where a person has written another at the path."""
    if path.is_file() and GENERATED not in path.read_text(encoding="utf-8", errors="replace"):
        return None
    from jinja2 import Template  # training imports this module and writes no card

    info = manifest.get("info", {})
    evaluation = info.get("evaluation") or {}
    # Without the folders above the data, which are private.
    data = Path(str(evaluation.get("source") or "unnamed data")).name
    metrics = evaluation.get("metrics", {})
    figures = {name: float(metrics[name]) for name in _SHOWN if name in metrics}
    front = _front_matter(manifest, evaluation, data, figures)
    training = (
        ("began from the weights", Path(str(info["weights"])).name if info.get("weights") else None),
        ("data", info.get("source")),
        ("training classes", info.get("num_classes")),
        ("steps", info.get("step")),
        ("epoch", info.get("epoch")),
        ("hash of the class-disjoint split", f"`{info['split_hash']}`" if info.get("split_hash") else None),
    )
    text = Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8")
    template = Template(text, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    card: str = template.render(
        manifest,
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        generated=GENERATED,
        given=Preprocess.from_dict(manifest["preprocess"]),
        training=training,
        evaluation=evaluation,
        data=data,
        figures=figures,
        calibration=info.get("calibration"),
        license=info.get("license"),
        cell=lambda value: str(value).replace("|", "\\|"),
        interval=lambda ends: f"{ends[0]:.4f}–{ends[1]:.4f}" if ends else "",
        numbers=lambda values: "(" + ", ".join(f"{value:g}" for value in values) + ")",
    )
    return card


def _front_matter(
    manifest: Mapping[str, Any], evaluation: Mapping[str, Any], data: str, figures: Mapping[str, float]
) -> dict[str, Any]:
    backbone = manifest["architecture"]["backbone"]
    exported = any(name.endswith(".onnx") for name in manifest.get("exports", {}))
    front: dict[str, Any] = {"library_name": "kindred", "pipeline_tag": _TASK}
    if manifest.get("info", {}).get("license"):
        front["license"] = manifest["info"]["license"]
    front["tags"] = ["image-retrieval", "metric-learning", "embeddings", backbone]
    front["tags"] += ["onnx"] if exported else []
    if evaluation:
        dataset = {"type": re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-") or "own", "name": data}
        if evaluation.get("split"):
            dataset["split"] = evaluation["split"]
        result = {
            "task": {"type": _TASK, "name": "Image retrieval"},
            "dataset": dataset,
            "metrics": [
                {"type": name.replace("@", "_at_"), "value": round(value, 4), "name": name}
                for name, value in figures.items()
            ],
        }
        front["model-index"] = [{"name": f"{backbone}-{manifest['fingerprint']}", "results": [result]}]
    return front
