"""The ONNX backend: a graph run by ONNX Runtime."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.errors import first_line
from models.inference.runner import Unavailable


class OnnxRunner:
    """Runs a graph on a CPU, or on CUDA where the installed ONNX Runtime supports it.

    Args:
        model: the file, or its bytes.
        device: a CPU or CUDA device; None is the CPU.
        threads: for each call; None takes torch's number.

    Raises:
        Unavailable: ONNX Runtime is missing, cannot read the graph, or has no support for the device.
    """

    name = "onnx"

    def __init__(
        self, model: Path | bytes, device: torch.device | None = None, threads: int | None = None
    ) -> None:
        if importlib.util.find_spec("onnxruntime") is None:
            raise Unavailable("needs the package onnxruntime: install the extra onnx")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        # Spinning idle threads would take cores away from the threads that decode images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, _providers(device)
            )
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
