"""Backbones: networks (B, C, H, W) → (B, features), found by a short name or a class path."""

from models.backbones.conv4 import Conv4
from models.backbones.inception_resnet_v1 import InceptionResnetV1
from models.backbones.registry import build_backbone
from models.backbones.resnet10 import ResNet10
from models.backbones.weights import input_settings

__all__ = ["Conv4", "InceptionResnetV1", "ResNet10", "build_backbone", "input_settings"]
