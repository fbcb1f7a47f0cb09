"""Former names of settings: bundles may keep them for good, configs for one version, with a warning."""

import logging
from collections.abc import Mapping
from typing import Any

_log = logging.getLogger(__name__)

_KEYS = {
    "Architecture": {"views": "tta"},
    "Conv4": {"pool": "pooling", "pools": "num_pools", "pool_first": "pool_before_norm"},
    "ImageDataModule": {"fit": "resize_mode"},
    "MetricLearner": {"views": "tta"},
    "PCAHead": {"trained": "head_weight"},
    "Preprocess": {"fit": "resize_mode"},
}
VALUES = {
    "class_path": {
        "models.callbacks.gallery.RetrievalGallery": "models.callbacks.retrieval_images.RetrievalImages",
        "models.callbacks.principal_head.PrincipalHead": "models.callbacks.pca_head.PCAHead",
    },
    "pooling": {"levels": "multiscale_stats"},
    "resize_mode": {"content": "content_crop", "squash": "stretch"},
}
_OPTIONS = {
    "--data.fit": "--data.resize_mode",
    "--data.init_args.fit": "--data.init_args.resize_mode",
    "--model.views": "--model.tta",
}


def renamed(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a class under their current names; some may have former names or values."""
    keys, result = _KEYS.get(kind, {}), {}
    for given, value in dict(settings).items():
        key = keys.get(given, given)
        if key != given and value is None and key in settings:
            continue  # the config that a run writes holds every argument, former names too
        values = VALUES.get(key, {}) if key in ("class_path", *keys.values()) else {}
        result[key] = values.get(value, value) if isinstance(value, str) else value
    return result


def renamed_config(settings: Any, kind: str = "") -> Any:
    """A config of ``kindred fit``, or a part of it, under current names; former names are logged.

    The part may be the arguments of a class, whose name is then the kind.
    """
    if isinstance(settings, list):
        return [renamed_config(entry, kind) for entry in settings]
    if not isinstance(settings, dict):
        return settings
    current = renamed(kind, settings)
    for old, was in settings.items():
        [(new, value)] = renamed(kind, {old: was}).items()
        if (old, was) != (new, value) and was is not None:
            tell(f"{old}: {was}", f"{new}: {value}")
    of_class = str(current.get("class_path", kind)).rpartition(".")[2]
    kinds = {"init_args": of_class, "data": "ImageDataModule", "model": "MetricLearner"}
    if current.get("backbone") == "conv4":
        kinds["backbone_args"] = "Conv4"
    return {key: renamed_config(value, kinds.get(key, "")) for key, value in current.items()}


def renamed_argument(argument: str) -> str:
    """A command-line argument of ``kindred fit`` under current names; former names are logged."""
    option, equals, value = argument.partition("=")
    current = _OPTIONS.get(option, option)
    values = VALUES["class_path"] | (VALUES["resize_mode"] if current.endswith("resize_mode") else {})
    current += equals + values.get(value, value)
    if current != argument:
        tell(argument, current)
    return current


def tell(old: str, new: str) -> None:
    """Log that a setting was renamed."""
    _log.warning("%s is now %s; the old name will be unknown to the next version", old, new)
