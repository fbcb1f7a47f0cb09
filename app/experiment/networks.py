"""A variant's network: the product's backbone and normalization, and a classifier."""

import torch
from torch import nn

from app.experiment.batches import GradientBatches
from app.experiment.grouped import group_normalization
from app.experiment.settings import Setting
from models.backbones import build_backbone
from models.backbones.adapt import remove_classifier
from models.backbones.registry import feature_width
from models.normalization import set_normalization


def build_classifier(setting: Setting, batches: GradientBatches, classes: int, seed: int) -> nn.Module:
    """A network (B, C, H, W) → (B, classes) whose normalization sees the variant's groups.

    Weights depend on the seed alone: the normalization is chosen after they are drawn.
    """
    torch.manual_seed(seed)
    channels = batches.preprocess.channels
    backbone = build_backbone(setting.backbone, setting.backbone_args, channels)
    remove_classifier(backbone)
    head = nn.Linear(feature_width(backbone, setting.backbone, channels), classes)
    network = nn.Sequential(backbone, head)
    network.to(batches.device)
    if setting.normalization == "frozen_batch":
        calibrate(network, batches, 1)
    set_normalization(network, setting.normalization, setting.normalization_args)
    return group_normalization(network, batches.groups, batches.consecutive, batches.shared_momentum)


@torch.no_grad()
def calibrate(network: nn.Module, batches: GradientBatches, count: int) -> None:
    """Set BatchNorm's running statistics to the mean over some batches, each pass taken as a whole; groups
    that are consecutive, and small therefore, in one pass.

    Args:
        network: with plain BatchNorm layers; left in evaluation mode.
        batches: where to take them from, from the first step on.
        count: how many.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    for step in range(count):
        parts = [batch.images for batch in batches[step]]
        for images in [torch.cat(parts)] if batches.consecutive else parts:
            network(images)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    network.eval()
