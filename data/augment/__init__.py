"""Augmentation of training images, seeded image by image."""

from data.augment.presets import PRESETS, Preset, make_augmentation

__all__ = ["PRESETS", "Preset", "make_augmentation"]
