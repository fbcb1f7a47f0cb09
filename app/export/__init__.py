"""``kindred export``: from checkpoints to bundles, and from bundles to ONNX and torch.export."""

from app.export.checkpoint import bundle_from_checkpoint, bundle_from_module
from app.export.command import export

__all__ = ["bundle_from_checkpoint", "bundle_from_module", "export"]
