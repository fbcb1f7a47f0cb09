"""Random changes of training images, seeded draw by draw."""

from data.augment.presets import PRESETS, Preset, make_augmentation

__all__ = ["PRESETS", "Preset", "make_augmentation"]
