"""Write a bundle's network as ONNX or torch.export, checked against the original."""

import hashlib
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from app.export.comparison_images import Pixels
from models.bundle import Bundle
from models.bundle_files import derived_fingerprint
from models.errors import InputError, first_line
from models.files import replacing
from models.inference import TOLERANCE, OnnxRunner, PixelNetwork, Unavailable, folded, to_onnx, versions


def exportable(bundle: Bundle, *, preprocessing: bool) -> nn.Module:
    """The folded network on the CPU, preceded by the normalization of pixels if ``preprocessing``."""
    network = folded(bundle.network).cpu()
    return PixelNetwork(network, bundle.preprocess).eval() if preprocessing else network


def onnx_content(bundle: Bundle, *, preprocessing: bool) -> bytes:
    """The network as ONNX, with fingerprint and preprocessing in its metadata.

    Raises:
        InputError: a package is missing, or the network cannot be converted.
    """
    metadata = {
        "kindred.fingerprint": bundle.fingerprint,
        "kindred.preprocess": json.dumps(bundle.preprocess.to_dict()),
    }
    network = exportable(bundle, preprocessing=preprocessing)
    try:
        return to_onnx(network, bundle.preprocess, pixels=preprocessing, metadata=metadata)
    except Unavailable as error:
        raise InputError(f"ONNX: {error}") from error


def write_onnx(
    bundle: Bundle, folder: Path, name: str, content: bytes, precision: str, pixels: Pixels
) -> dict[str, Any]:
    """Check a graph on images, write it into the bundle's folder and record it in bundle.json.

    With precision "float32" it must agree with the original; with any other, the difference is only recorded,
    and the vectors get a fingerprint of their own.

    Raises:
        InputError: the graph cannot be run, or a float32 graph does not agree.
    """
    try:
        runner = OnnxRunner(content)
    except Unavailable as error:
        raise InputError(f"{name}: {error}") from error
    parity = _parity(bundle, pixels, replace(bundle, runner=runner).embed_pixels)
    same = precision == "float32"
    if same:
        _require_parity(name, parity)
    fingerprint = bundle.fingerprint if same else derived_fingerprint(bundle.fingerprint, content)
    about = {"format": "onnx", "precision": precision, "fingerprint": fingerprint, "parity": parity}
    return _write(bundle, folder / name, content, about, preprocessing=runner.takes_pixels)


def write_torch_export(
    bundle: Bundle, folder: Path, name: str, pixels: Pixels, *, preprocessing: bool
) -> dict[str, Any]:
    """Write the network as a ``torch.export`` program, checked on images after it is read back.

    Raises:
        InputError: the network cannot be exported, or the program does not agree with the original.
    """
    given = bundle.preprocess
    example = torch.zeros((2, *given.shape), dtype=torch.uint8)
    if not preprocessing:
        example = given.normalize(example)
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch", min=1)
        try:
            network = exportable(bundle, preprocessing=preprocessing)
            program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
            torch.export.save(program, file)
            file.seek(0)
            loaded = torch.export.load(file).module()
        except Exception as error:
            raise InputError(f"{name}: the network cannot be exported ({first_line(error)})") from error

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        vectors: Tensor = loaded(images if preprocessing else given.normalize(images))
        return vectors

    parity = _parity(bundle, pixels, run)
    _require_parity(name, parity)
    about = {
        "format": "torch.export",
        "precision": "float32",
        "fingerprint": bundle.fingerprint,
        "parity": parity,
    }
    return _write(bundle, folder / name, file.getvalue(), about, preprocessing=preprocessing)


def _write(
    bundle: Bundle, path: Path, content: bytes, about: dict[str, Any], *, preprocessing: bool
) -> dict[str, Any]:
    """Write an export into the bundle's folder and record it in bundle.json; returns the record."""
    record = {
        **about,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "input": {
            "dtype": "uint8" if preprocessing else "float32",
            "shape": ["batch", *bundle.preprocess.shape],
            "normalization_inside": preprocessing,
        },
        "output": {"dtype": "float32", "shape": ["batch", bundle.dim]},
    }
    try:
        with replacing(path) as fresh:
            fresh.write_bytes(content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    bundle.update(path.parent, exports={path.name: record})
    return record


def _parity(original: Bundle, pixels: Pixels, export: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Compare an export, uint8 (B, C, H, W) → (B, dim), with the original, in batches of 1 and then 7 images.

    Returns:
        Plain JSON: `max_difference` over all coordinates, `least_similarity` (cosine) over all images, the
        number and source of the images, and versions.
    """
    batches = [part for part in (pixels.values[:1], *torch.split(pixels.values[1:], 7)) if len(part)]
    expected = torch.cat([original.embed_pixels(batch).cpu() for batch in batches])
    found = torch.cat([export(batch).float().cpu() for batch in batches])
    difference = (found - expected).abs().nan_to_num(torch.inf)
    return {
        "max_difference": float(difference.max()),
        "least_similarity": float((found * expected).sum(1).min()),
        "images": len(expected),
        "source": pixels.source,
        "versions": versions(),
    }


def _require_parity(name: str, parity: dict[str, Any]) -> None:
    """Refuse an export that differs from the original by more than the tolerance in a coordinate."""
    if not parity["max_difference"] <= TOLERANCE:
        raise InputError(
            f"{name}: differs from the original by {parity['max_difference']:.1e} in a coordinate, over "
            f"{TOLERANCE:g}; it was not written"
        )
