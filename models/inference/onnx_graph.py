"""From a network to ONNX."""

import importlib.util
import warnings

import torch
from torch import nn

from models.inference.runner import Unavailable
from models.preprocess import Preprocess

INPUT, OUTPUT = "images", "embeddings"
# A protobuf file cannot be larger; beyond it ONNX wants its weights in further files.
_LARGEST = 2**31 - 2**24


def to_onnx(
    network: nn.Module,
    preprocess: Preprocess,
    *,
    pixels: bool = False,
    metadata: dict[str, str] | None = None,
) -> bytes:
    """The network as one ONNX file.

    Args:
        network: in evaluation mode, on a CPU: float32 (B, C, H, W) → (B, dim), or uint8 pixels.
        preprocess: of the network; gives the shape of its input.
        pixels: whether the network takes uint8 pixels instead of normalized float32.
        metadata: kept in the file.

    Returns:
        A model with the input "images", (batch, C, H, W), and the output "embeddings", float32 (batch, dim);
        any batch size fits.

    Raises:
        Unavailable: a package is missing, or the network has an operation that ONNX lacks.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise Unavailable(f"needs the package {missing[0]}: install the extra onnx")
    size = sum(t.numel() * t.element_size() for t in [*network.parameters(), *network.buffers()])
    if size > _LARGEST:
        raise Unavailable(f"{size / 2**30:.1f} GB of weights do not fit one ONNX file")
    example = torch.zeros((2, *preprocess.shape), dtype=torch.uint8 if pixels else torch.float32)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Unavailable(f"the network cannot be written as ONNX ({reason})") from error
    if program is None:
        raise Unavailable("torch's exporter gave nothing")
    model = program.model_proto
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    content: bytes = model.SerializeToString()
    return content
