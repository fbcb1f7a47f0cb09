"""``kindred export``: makes bundles, and writes ONNX and torch.export files into them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from models.errors import InputError

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.preprocess import Preprocess


def export(
    model: Path | None = None,
    *,
    backbone: str | None = None,
    weights: str | None = None,
    image_size: int | None = None,
    preprocess: str | None = None,
    out: Path | None = None,
    onnx: bool = False,
    with_preprocessing: bool = False,
    torch_export: bool = False,
    quantize: Sequence[Literal["dynamic", "static"]] = (),
    data: str | None = None,
    split: str = "test",
    images: int = 64,
    calibration_images: int = 512,
    licence: str | None = None,
    seed: int = 0,
    trust_code: bool = False,
) -> None:
    """Turn a checkpoint or a pretrained network into a bundle, and a bundle into ONNX or torch.export.

    A bundle is a folder with safetensors, JSON and a model card. Each exported file is compared with the
    original network on images, and the differences are written into bundle.json.

    Args:
        model: A file under RUN/checkpoints, or a bundle; leave it out with --backbone.
        backbone: A pretrained network without further training: timm.<name>, or a name of torchvision.
        weights: Weights of the backbone: packaged (only timm.tf_efficientnet_lite0), a local file as
            published, DEFAULT, or a name of timm or torchvision.
        image_size: Side of the input images in pixels; by default that of the weights.
        preprocess: Preprocessing for the checkpoint of a run with a data module of your own: JSON of
            models.preprocess.Preprocess, such as '{"size": 224, "mean": [0.5, 0.5, 0.5], "std": [0.5,
            0.5, 0.5]}'.
        out: Folder of the new bundle, which is replaced if it exists; by default the given bundle.
        onnx: Write model.onnx, for any batch size.
        with_preprocessing: Export graphs that take uint8 pixels and normalize them. Decoding and resizing
            stay outside.
        torch_export: Write model.pt2, a torch.export program.
        quantize: Write int8 ONNX models: dynamic, static, or both by giving the option twice.
        data: Images to compare on, as in kindred evaluate; by default images of random numbers.
        split: Split of the data to compare on: test, val, train or all.
        images: Number of images to compare on.
        calibration_images: Number of training images that set the ranges of static quantization.
        licence: Licence of the weights for the model card, as the Hugging Face hub spells it.
        seed: Random seed of the samples of images.
        trust_code: Allow a backbone class outside the known packages; importing it runs its code.
    """
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", licence):
        raise InputError(f"--licence {licence}: give an identifier such as apache-2.0, cc-by-4.0 or other")
    if images < 1 or calibration_images < 1:
        raise InputError("--images and --calibration-images must be at least 1")
    if "static" in quantize and data is None:
        raise InputError("--quantize static calibrates on training images: name them with --data")
    bundle, folder = _model(model, backbone, weights, image_size, preprocess, out, trust_code)
    if licence is not None:
        bundle.update(folder, info={"license": licence})
    console = Console()
    console.print(f"bundle {bundle.fingerprint} in {folder}")
    written: dict[str, dict[str, Any]] = {}
    if not (onnx or torch_export or quantize):
        return
    from app.export.comparison_images import pixels_of
    from app.export.formats import onnx_content, write_onnx, write_torch_export
    from app.export.quantize import quantized

    pixels = pixels_of(bundle, data, split, images, seed)
    if torch_export:
        written["model.pt2"] = write_torch_export(
            bundle, folder, "model.pt2", pixels, preprocessing=with_preprocessing
        )
    if onnx or quantize:
        content = onnx_content(bundle, preprocessing=with_preprocessing)
        if onnx:
            written["model.onnx"] = write_onnx(bundle, folder, "model.onnx", content, "float32", pixels)
        for method in dict.fromkeys(quantize):
            static = method == "static"
            calibration = pixels_of(bundle, data, "train", calibration_images, seed) if static else None
            small = quantized(content, method, bundle.preprocess, calibration)
            name = f"model.int8-{method}.onnx"
            written[name] = write_onnx(bundle, folder, name, small, f"int8 {method}", pixels)
    console.print(_table(written))


def _model(
    model: Path | None,
    backbone: str | None,
    weights: str | None,
    image_size: int | None,
    preprocess: str | None,
    out: Path | None,
    trust_code: bool,
) -> tuple[Bundle, Path]:
    """The trained or pretrained model that the options name, and its bundle's folder."""
    if model is not None and backbone is None:
        if weights is not None or image_size is not None:
            raise InputError("--weights and --image-size go with --backbone: leave them out")
        return _bundle(model, preprocess, out, trust_code)
    if preprocess is not None:
        raise InputError("--preprocess goes with a checkpoint; leave it out with --backbone")
    if model is not None or backbone is None:
        raise InputError("name either a checkpoint or bundle, or a pretrained network with --backbone")
    if weights is None or out is None:
        raise InputError(f"--backbone {backbone}: name its weights with --weights and the bundle with --out")
    from models.pretrained import pretrained_bundle

    bundle = pretrained_bundle(backbone, weights, image_size, trust_code=trust_code)
    return bundle, bundle.save(out)


def _bundle(model: Path, preprocess: str | None, out: Path | None, trust_code: bool) -> tuple[Bundle, Path]:
    """The model of a checkpoint or bundle, and its bundle's folder."""
    from app.export import bundle_from_checkpoint
    from models.bundle import Bundle

    if not model.is_dir():
        settings = None if preprocess is None else _preprocess(preprocess)
        bundle = bundle_from_checkpoint(model, settings, trust_code=trust_code)
        if out is None:
            raise InputError(f"{model}: name the bundle's folder with --out")
        return bundle, bundle.save(out)
    if preprocess is not None:
        raise InputError(f"{model}: a bundle has its preprocessing already; leave --preprocess out")
    bundle = Bundle.load(model, "cpu", trust_code=trust_code)
    if out is None or out.resolve() == model.resolve():
        return bundle, model
    bundle.exports.clear()
    return bundle, bundle.save(out)


def _preprocess(text: str) -> Preprocess:
    from models.preprocess import Preprocess

    try:
        return Preprocess.from_dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise InputError(f'--preprocess {text}: {error}; give JSON such as {{"size": 224}}') from error


def _table(written: dict[str, dict[str, Any]]) -> Table:
    table = Table("file", "precision", "input", "MB", "largest difference", "least similarity", "images")
    for name, record in written.items():
        parity = record["parity"]
        table.add_row(
            name,
            record["precision"],
            record["input"]["dtype"],
            f"{record['bytes'] / 1e6:.2f}",
            f"{parity['max_difference']:.1e}",
            f"{parity['least_similarity']:.6f}",
            f"{parity['images']} ({parity['source']})",
        )
    return table
