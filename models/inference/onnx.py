"""Export of a network to ONNX."""

import importlib.util
import warnings

import torch
from torch import nn

from models.errors import first_line
from models.inference.runner import Unavailable
from models.preprocess import Preprocess

INPUT, OUTPUT = "images", "embeddings"
# A protobuf file is limited to 2 GiB; larger models would need external weight files.
_LARGEST = 2**31 - 2**24


def to_onnx(
    network: nn.Module,
    preprocess: Preprocess,
    *,
    pixels: bool = False,
    metadata: dict[str, str] | None = None,
) -> bytes:
    """The bytes of an ONNX file of the network.

    Args:
        network: in evaluation mode, on a CPU: float32, or uint8 where `pixels`, (B, C, H, W) → (B, dim).
        preprocess: the network's; it gives the shape of the input.
        pixels: whether the network takes uint8 pixels instead of normalized float32.
        metadata: texts to store in the file.

    Returns:
        A model with the input "images", (batch, C, H, W), and the output "embeddings", float32 (batch, dim),
        for any batch size.

    Raises:
        Unavailable: a package is missing, the network is over 2 GiB, or ONNX lacks one of its operations.
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
            raise Unavailable(f"the network cannot be written as ONNX ({first_line(error)})") from error
    if program is None:
        raise Unavailable("torch's exporter gave nothing")
    model = program.model_proto
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    content: bytes = model.SerializeToString()
    return content
