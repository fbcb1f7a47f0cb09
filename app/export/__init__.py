"""Make bundles from checkpoints, and ONNX and torch.export files from bundles."""

from app.export.checkpoint import bundle_from_checkpoint, bundle_from_module

__all__ = ["bundle_from_checkpoint", "bundle_from_module"]
