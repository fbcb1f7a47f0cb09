"""How far a batch's training-mode embeddings are from its inference-mode ones."""

from collections.abc import Callable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from models.eval_mode import eval_mode
from models.module import MetricLearner


class EmbeddingGap(Callback):
    """Log `train/embedding_gap`, the mean of 1 − cosine between an image's embedding in training and in
    inference.

    Under batch normalization with class-grouped batches the two differ, since in training the network sees
    its batch's own statistics; Batch Renormalization is there to close this gap. One more forward pass,
    every few steps.

    Args:
        every: optimizer steps between measurements.
    """

    def __init__(self, every: int = 100) -> None:
        self.every = every

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Measure between the forward pass and the optimizer's step, with the same weights."""
        del loss
        if not isinstance(pl_module, MetricLearner) or pl_module.last_batch is None:
            return
        if trainer.global_step % self.every == 0:
            images, embeddings = pl_module.last_batch
            network = pl_module.network
            gap = embedding_gap(network, images, embeddings, embed=network.without_tta)
            pl_module.log("train/embedding_gap", gap)


@torch.no_grad()
def embedding_gap(
    network: torch.nn.Module,
    images: Tensor,
    embeddings: Tensor,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Mean of 1 − cosine between given embeddings and the network's in evaluation mode.

    Args:
        network: left in the mode it was in.
        images: (B, C, H, W).
        embeddings: (B, D), of length 1, of the same images in training mode.
        embed: what gives the network's embeddings; by default its call.

    Returns:
        A scalar from 0 (the same) to 2.
    """
    with eval_mode(network):
        inference: Tensor = (embed or network)(images)
    cosine: Tensor = (inference * embeddings).sum(1)
    return 1 - cosine.mean()
