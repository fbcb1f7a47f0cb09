"""ONNX: writing a network as a graph, and running graphs by ONNX Runtime."""

import importlib.util
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from models.errors import first_line
from models.inference.runner import Unavailable
from models.preprocess import Preprocess

INPUT, OUTPUT = "images", "embeddings"
# A protobuf file is limited to 2 GiB; larger models would need external weight files.
_LARGEST = 2**31 - 2**24


class PixelNetwork(nn.Module):
    """Normalizes pixels, then embeds: takes what ``Preprocess.open`` and ``Preprocess.tensor`` return."""

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network, self.preprocess = network, preprocess

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed uint8 pixels (B, C, H, W) in 0…255 as (B, dim)."""
        vectors: Tensor = self.network(self.preprocess.normalize(pixels))
        return vectors


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
    _require("onnx", "onnxscript")
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


class OnnxRunner:
    """Runs an ONNX file's bytes on a CPU, or on CUDA where the installed ONNX Runtime supports it.

    Raises:
        Unavailable: ONNX Runtime is missing, cannot read the graph, or has no support for the device.
    """

    name = "onnx"

    def __init__(self, model: bytes, device: torch.device | None = None) -> None:
        _require("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        # Spinning idle threads would take cores away from the threads that decode images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(model, options, _providers(device))
        except Exception as error:
            raise Unavailable(f"ONNX Runtime cannot run the graph ({first_line(error)})") from error
        (graph_input,) = self._session.get_inputs()
        self._input: str = graph_input.name
        self.takes_pixels: bool = graph_input.type == "tensor(uint8)"

    def __call__(self, batch: Tensor) -> Tensor:
        """See :class:`models.inference.runner.Runner`; the result is on a CPU."""
        images = np.ascontiguousarray(batch.numpy(force=True))
        (vectors,) = self._session.run(None, {self._input: images})
        return torch.from_numpy(vectors)


def _providers(device: torch.device | None) -> list[str | tuple[str, dict[str, int]]]:
    import onnxruntime

    if device is None or device.type == "cpu":
        return ["CPUExecutionProvider"]
    if device.type != "cuda" or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise Unavailable(f"the installed ONNX Runtime cannot use {device.type}")
    return [("CUDAExecutionProvider", {"device_id": device.index or 0}), "CPUExecutionProvider"]


def _require(*packages: str) -> None:
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise Unavailable(f"needs the package {name}: install the extra onnx")
