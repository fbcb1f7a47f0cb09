"""Batch Renormalization for PyTorch: exact, complete, at no more than batch normalization's cost."""

from .convert import convert_to_batch_renorm, revert_to_batch_norm
from .layer import BatchRenorm, BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from .schedule import PAPER_DMAX, PAPER_RMAX, Ramp, RenormSchedule
from .sync import SyncBatchRenorm

__all__ = [
    "PAPER_DMAX",
    "PAPER_RMAX",
    "BatchRenorm",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "Ramp",
    "RenormSchedule",
    "SyncBatchRenorm",
    "convert_to_batch_renorm",
    "revert_to_batch_norm",
]
