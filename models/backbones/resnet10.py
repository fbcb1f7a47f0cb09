"""ResNet-10: one basic block a stage, sized for a CPU."""

from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1

from models.errors import InputError


class ResNet10(nn.Module):
    """The ResNet (He et al. 2016) with one basic block in each of four stages.

    Args:
        in_channels: channels of the input.
        width: channels of the first stage; every later stage doubles them.
        stem: "small" is one 3×3 convolution and 2×2 pooling, for images up to about 96 px; "tiny" the same
            without pooling, for 28 to 40 px; "imagenet" is the original 7×7, stride 2, with 3×3 pooling.

    Shape: (B, in_channels, H, W) → (B, 8 · width).
    """

    def __init__(
        self,
        in_channels: int = 3,
        width: int = 32,
        stem: Literal["small", "tiny", "imagenet"] = "small",
    ) -> None:
        super().__init__()
        if stem == "imagenet":
            first: nn.Module = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
            pool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        elif stem in ("small", "tiny"):
            first = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
            pool = nn.MaxPool2d(2) if stem == "small" else nn.Identity()
        else:
            raise InputError(f"resnet10: stem is 'small', 'tiny' or 'imagenet', not {stem!r}")
        self.stem = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(inplace=True), pool)
        self.stages = nn.Sequential(
            _stage(width, width, 1),
            _stage(width, 2 * width, 2),
            _stage(2 * width, 4 * width, 2),
            _stage(4 * width, 8 * width, 2),
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.num_features = 8 * width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (B, C, H, W) as features (B, num_features)."""
        features: Tensor = self.pool(self.stages(self.stem(images)))
        return features


def _stage(before: int, after: int, stride: int) -> nn.Module:
    shortcut = None
    if stride != 1 or before != after:
        shortcut = nn.Sequential(conv1x1(before, after, stride), nn.BatchNorm2d(after))
    block: nn.Module = BasicBlock(before, after, stride, shortcut)
    return block
