"""Batch Renormalization over the batches of all processes."""

from .layer import BatchRenorm


class SyncBatchRenorm(BatchRenorm):
    """Placeholder of the same numbers on one process."""

    _dimensions = (2, 3, 4, 5)
    process_group: object = None
