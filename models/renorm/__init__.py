"""Batch Renormalization for PyTorch: exact, complete, at no more than batch normalization's cost."""

from .averaging import RenormAveragedModel, average_statistics_across_ranks, averaging_deviations
from .convert import convert_to_batch_renorm, revert_to_batch_norm
from .functional import batch_renorm
from .graphs import fold_batch_renorm, fuse_batch_renorm
from .layer import BatchRenorm, BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, SyncBatchRenorm
from .schedule import PAPER_DMAX, PAPER_RMAX, Ramp, RenormSchedule, falling_momentum, narrowed_rmax

__all__ = [
    "PAPER_DMAX",
    "PAPER_RMAX",
    "BatchRenorm",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "Ramp",
    "RenormAveragedModel",
    "RenormSchedule",
    "SyncBatchRenorm",
    "average_statistics_across_ranks",
    "averaging_deviations",
    "batch_renorm",
    "convert_to_batch_renorm",
    "falling_momentum",
    "fold_batch_renorm",
    "fuse_batch_renorm",
    "narrowed_rmax",
    "revert_to_batch_norm",
]
