"""Fast inference: the folded network in torch, compiled, or in ONNX Runtime, whichever is fastest here."""

from models.inference.choice import BACKENDS, TOLERANCE, Choice, Model, optimize
from models.inference.fold import folded
from models.inference.machine import versions
from models.inference.onnx_graph import to_onnx
from models.inference.onnx_runner import OnnxRunner
from models.inference.pixels import PixelNetwork
from models.inference.runner import Runner, Unavailable
from models.inference.samples import sample_pixels

__all__ = [
    "BACKENDS",
    "TOLERANCE",
    "Choice",
    "Model",
    "OnnxRunner",
    "PixelNetwork",
    "Runner",
    "Unavailable",
    "folded",
    "optimize",
    "sample_pixels",
    "to_onnx",
    "versions",
]
