"""Averages of weights (EMA, SWA) that average the running deviation, not its square."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.optim.swa_utils import AveragedModel

from .layer import BatchRenorm


@contextmanager
def averaging_deviations(model: nn.Module, average: nn.Module) -> Iterator[None]:
    """Let ``running_var`` of both modules' layers hold the deviation, so that averages are of deviations.

    Wrap the update of an average of a model's parameters *and buffers*; the model's statistics come out
    bit for bit as they went in. The paper's inference averages mu and sigma in this way.

    Args:
        model: the one in training.
        average: the one that is updated from it.
    """
    of_model, of_average = (
        [m for m in module.modules() if isinstance(m, BatchRenorm)] for module in (model, average)
    )
    saved = [layer.running_var.clone() for layer in of_model]
    for layer in of_model + of_average:
        layer.running_var.add_(layer.eps).sqrt_()
    try:
        yield
    finally:
        for layer, before in zip(of_model, saved, strict=True):
            layer.running_var.copy_(before)
        for layer in of_average:
            layer.running_var.square_().sub_(layer.eps)


class RenormAveragedModel(AveragedModel):
    """``torch.optim.swa_utils.AveragedModel`` that averages deviations; give it ``use_buffers=True``."""

    def update_parameters(self, model: nn.Module) -> None:
        """Take the model's present parameters and statistics into the average."""
        with averaging_deviations(model, self.module):
            super().update_parameters(model)
