"""The model card: a bundle's README.md, made from its description.

The front matter follows the Hugging Face hub's model card specification (huggingface/hub-docs, modelcard.md).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from models.preprocess import Preprocess

GENERATED = "<!-- Made from bundle.json by kindred. Remove this line and kindred leaves your text alone. -->"
TASK = "image-feature-extraction"
_SHOWN = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision", "mrr")

_SUMMARY = """\
Maps an image to a vector of length 1. Images of one class lie close together, also for classes that it was
not trained on: add images of new classes to an index and search it, without training again.
"""
_LIMITS = """\
- It compares images by cosine similarity. A similarity means something only between vectors of the same
  fingerprint.
- It was made for crops of one object, prepared as under *Input and output*; it detects and aligns nothing.
- The figures hold for the data named here. On other data measure again (`kindred evaluate`) and calibrate the
  thresholds again: a false accept rate does not carry over from one set to another.
- Who or what is missing from the training data is not known to this card; nobody has examined how errors
  spread over groups of people. Do not let it alone decide anything about a person.
- An int8 export gives other vectors than the original: use one of them for a collection, never both."""


def model_card(manifest: Mapping[str, Any], path: Path) -> str | None:
    """The card's text, or None where a person has written another.

    Args:
        manifest: the content of ``bundle.json``.
        path: of the card, which may not exist yet.
    """
    if path.is_file() and GENERATED not in path.read_text(encoding="utf-8", errors="replace"):
        return None
    architecture, info = manifest["architecture"], manifest.get("info", {})
    front = yaml.safe_dump(_front_matter(manifest), sort_keys=False, allow_unicode=True).strip()
    parts = [
        f"---\n{front}\n---\n\n{GENERATED}\n",
        f"# Image embeddings: {architecture['backbone']}, {manifest['dim']} dimensions\n",
        _SUMMARY,
        _use(manifest),
        _input_and_output(manifest),
        _training(architecture, info),
        _evaluation(info.get("evaluation")),
        _thresholds(info.get("calibration", ())),
        _exports(manifest.get("exports", {})),
        f"## Limits\n\n{_LIMITS}\n",
        _licence(info.get("license")),
    ]
    return "\n".join(part for part in parts if part)


def _front_matter(manifest: Mapping[str, Any]) -> dict[str, Any]:
    info = manifest.get("info", {})
    front: dict[str, Any] = {"library_name": "kindred", "pipeline_tag": TASK}
    if info.get("license"):
        front["license"] = info["license"]
    tags = ["image-retrieval", "metric-learning", "embeddings", manifest["architecture"]["backbone"]]
    tags += ["onnx"] if any(name.endswith(".onnx") for name in manifest.get("exports", {})) else []
    front["tags"] = tags
    evaluation = info.get("evaluation")
    if evaluation:
        data = _data_name(evaluation)
        figures = [
            {"type": name.replace("@", "_at_"), "value": round(float(value), 4), "name": name}
            for name, value in evaluation["metrics"].items()
            if name in _SHOWN
        ]
        dataset = {"type": re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-") or "own", "name": data}
        if evaluation.get("split"):
            dataset["split"] = evaluation["split"]
        task = {"type": TASK, "name": "Image retrieval"}
        name = f"{manifest['architecture']['backbone']}-{manifest['fingerprint']}"
        front["model-index"] = [
            {"name": name, "results": [{"task": task, "dataset": dataset, "metrics": figures}]}
        ]
    return front


def _use(manifest: Mapping[str, Any]) -> str:
    channels = manifest["architecture"]["in_channels"]
    given = Preprocess.from_dict(manifest["preprocess"])
    return f"""## Use

```python
from models.bundle import Bundle

bundle = Bundle.load("this-folder")
vectors = bundle.embed(["query.jpg", "other.jpg"])  # float32 (2, {manifest["dim"]})
similarity = vectors[0] @ vectors[1]
```

`kindred index --bundle this-folder …` and `kindred serve --bundle this-folder …` search with it. The weights
are safetensors, everything else is in `bundle.json`; loading runs no code of the bundle. The network alone
takes float32 (B, {channels}, {given.height}, {given.width}).
"""


def _input_and_output(manifest: Mapping[str, Any]) -> str:
    given = Preprocess.from_dict(manifest["preprocess"])
    mode = {"L": "grey", "RGB": "RGB"}[given.mode]
    size = f"{given.height}×{given.width} pixels"
    rows = [
        ("image", f"{mode}, {given.resize_mode} to {size}, {given.interpolation}"),
        (
            "normalization",
            f"pixel / 255, less {_numbers(given.mean)}, divided by {_numbers(given.std)}",
        ),
        ("vector", f"{manifest['dim']} numbers, float32, length 1"),
        ("fingerprint", f"`{manifest['fingerprint']}`"),
    ]
    return "## Input and output\n\n" + _table(("", ""), rows)


def _training(architecture: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    rows = [("backbone", f"{architecture['backbone']}, normalization: {architecture['normalization']}")]
    if info.get("weights"):
        rows.append(("began from the weights", Path(str(info["weights"])).name))
    for key, shown in (
        ("source", "data"),
        ("num_classes", "training classes"),
        ("step", "steps"),
        ("epoch", "epoch"),
        ("split_hash", "hash of the class-disjoint split"),
    ):
        if info.get(key) is not None:
            rows.append((shown, f"`{info[key]}`" if key == "split_hash" else str(info[key])))
    return "## Training\n\n" + _table(("", ""), rows)


def _evaluation(evaluation: Mapping[str, Any] | None) -> str:
    if not evaluation:
        return "## Evaluation\n\nNot measured yet: `kindred evaluate --bundle this-folder --data …`.\n"
    intervals = evaluation.get("intervals_95", {})
    rows = [
        (name, f"{evaluation['metrics'][name]:.4f}", _interval(intervals.get(name)))
        for name in _SHOWN
        if name in evaluation["metrics"]
    ]
    counts = [f"{evaluation[key]} {key}" for key in ("items", "classes") if evaluation.get(key)]
    about = ", ".join([f"{_data_name(evaluation)}, {evaluation.get('split') or 'all'} part", *counts])
    same = evaluation.get("split_hash")
    split = f" Split hash `{same}`." if same else ""
    return (
        f"## Evaluation\n\n{about}; each image against all others, exact.{split} "
        "Intervals are 95% bootstraps over classes.\n\n" + _table(("metric", "value", "95% interval"), rows)
    )


def _thresholds(calibration: Any) -> str:
    if not calibration:
        return ""
    rows = [
        (f"{t['far']:g}", f"{t['threshold']:.4f}", _interval((t["low"], t["high"])), f"{t['tar']:.3f}")
        for t in calibration
    ]
    head = ("false accept rate", "similarity ≥", "95% interval", "true accept rate")
    return (
        "## Thresholds\n\n"
        "Two images count as the same class from this similarity on; found on the data above.\n\n"
        + _table(head, rows)
    )


def _exports(exports: Mapping[str, Mapping[str, Any]]) -> str:
    if not exports:
        return ""
    rows = []
    for name, record in exports.items():
        parity = record["parity"]
        rows.append(
            (
                f"`{name}`",
                record["precision"],
                f"{record['input']['dtype']}, {'×'.join(str(side) for side in record['input']['shape'])}",
                f"{record['bytes'] / 1e6:.2f} MB",
                f"{parity['max_difference']:.1e} on {parity['images']} images ({parity['source']})",
            )
        )
    head = ("file", "precision", "input", "size", "largest difference from the original")
    return "## Exports\n\n" + _table(head, rows)


def _licence(licence: str | None) -> str:
    said = (
        f"`{licence}`, as stated at export."
        if licence
        else "Not stated (`kindred export --licence`). It depends on the rights in the training images."
    )
    return f"## Licence\n\nOf these weights: {said}\n"


def _data_name(evaluation: Mapping[str, Any]) -> str:
    """The data's name without the folders above it, which are private."""
    return Path(str(evaluation.get("source") or "unnamed data")).name


def _interval(ends: Any) -> str:
    return f"{ends[0]:.4f}–{ends[1]:.4f}" if ends else ""


def _numbers(values: Any) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ("---",) * len(head), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
