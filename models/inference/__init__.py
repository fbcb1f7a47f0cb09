"""Fast inference: the folded network in torch, compiled, or in ONNX Runtime, whichever is fastest here."""

from models.inference.choice import TOLERANCE, Choice, Model, optimize, sample_pixels
from models.inference.onnx import OnnxRunner, PixelNetwork, to_onnx
from models.inference.runner import Runner, Unavailable, folded
from models.inference.speed import versions

__all__ = [
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
