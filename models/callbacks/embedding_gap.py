"""The distance between a batch's embeddings in training mode and in evaluation mode."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from models.eval_mode import eval_mode
from models.network import EmbeddingNetwork


class EmbeddingGap(Callback):
    """Log `train/embedding_gap`: the mean of 1 − cosine between an image's training and inference embedding.

    With batch normalization and class-grouped batches the two differ, because in training the network uses
    the batch's own statistics; Batch Renormalization closes this gap. Each measurement costs a forward pass.
    It needs a module like MetricLearner, with a ``network`` and a ``last_batch``, and logs nothing for
    others.

    Args:
        every: optimizer steps between measurements.
    """

    def __init__(self, every: int = 100) -> None:
        self.every = every

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Measure between the forward pass and the optimizer's step, with the same weights."""
        network, last = getattr(pl_module, "network", None), getattr(pl_module, "last_batch", None)
        if trainer.global_step % self.every == 0 and last and isinstance(network, EmbeddingNetwork):
            images, embeddings = last
            gap = embedding_gap(network, images, embeddings, network.without_tta)
            pl_module.log("train/embedding_gap", gap)


@torch.no_grad()
def embedding_gap(
    network: torch.nn.Module,
    images: Tensor,
    embeddings: Tensor,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Mean of 1 − cosine, 0 (the same) to 2, between given embeddings and the network's in evaluation mode.

    Args:
        network: keeps the mode that it is in.
        images: (B, C, H, W).
        embeddings: (B, D), of length 1, of the same images in training mode.
        embed: computes the network's embeddings; by default the network itself.
    """
    with eval_mode(network):
        inference: Tensor = (embed or network)(images)
    cosine: Tensor = (inference * embeddings).sum(1)
    return 1 - cosine.mean()
