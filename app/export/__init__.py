"""From checkpoints to bundles, and from bundles to ONNX and torch.export."""

from app.export.checkpoint import bundle_from_checkpoint, bundle_from_module

__all__ = ["bundle_from_checkpoint", "bundle_from_module"]
