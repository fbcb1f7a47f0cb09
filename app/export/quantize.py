"""Int8 ONNX models: a quarter of the size; `kindred evaluate` measures the loss."""

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from app.export.comparison_images import Pixels
from app.progress import without_warnings
from models.errors import InputError, first_line
from models.preprocess import Preprocess

Method = Literal["dynamic", "static"]

# Operators to quantize: not the final scaling to unit length, which stays in float32.
_STATIC = ["Conv", "Gemm", "MatMul", "Add", "MaxPool", "GlobalAveragePool", "AveragePool", "Concat"]
_DYNAMIC = ["Conv", "Gemm", "MatMul"]
_CALIBRATION_BATCH = 16


def quantized(
    content: bytes, method: Method, preprocess: Preprocess, calibration: Pixels | None = None
) -> bytes:
    """Quantize a float32 graph to int8.

    "dynamic" finds the range of each activation at run time; "static" fixes the ranges beforehand on
    ``calibration`` images, which must not be test images, and runs faster.

    Raises:
        InputError: ONNX Runtime is missing or cannot quantize this graph.
    """
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise InputError(f"--quantize {method} needs ONNX Runtime: install the extra onnx") from error
    # ONNX Runtime logs advice through the root logger.
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings(), without_warnings(None):
        warnings.simplefilter("ignore")
        source, prepared, target = (Path(scratch) / name for name in ("a.onnx", "b.onnx", "c.onnx"))
        source.write_bytes(content)
        try:
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            if method == "dynamic":
                # ONNX Runtime on CPUs has integer convolutions only for unsigned weights.
                quantization.quantize_dynamic(
                    prepared,
                    target,
                    op_types_to_quantize=_DYNAMIC,
                    weight_type=quantization.QuantType.QUInt8,
                )
            else:
                quantization.quantize_static(
                    prepared,
                    target,
                    _reader(calibration, preprocess, content),
                    op_types_to_quantize=_STATIC,
                    per_channel=True,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                )
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"--quantize {method}: ONNX Runtime cannot quantize it ({first_line(error)})"
            ) from error
        return target.read_bytes()


def _reader(calibration: Pixels | None, preprocess: Preprocess, content: bytes) -> Any:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader

    if calibration is None:
        raise InputError("--quantize static calibrates on training images: name them with --data")
    (graph_input,) = onnx.load_from_string(content).graph.input
    takes_pixels = graph_input.type.tensor_type.elem_type == onnx.TensorProto.UINT8

    def feeds() -> Iterator[dict[str, NDArray[Any]]]:
        for batch in torch.split(calibration.values, _CALIBRATION_BATCH):
            images = batch if takes_pixels else preprocess.normalize(batch)
            yield {graph_input.name: np.ascontiguousarray(images.numpy())}

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self._feeds = feeds()

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self._feeds, None)

    return Reader()
