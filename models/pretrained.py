"""Bundles of pretrained networks without training: the baseline to beat, and a search before any training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from models.backbones import build_backbone, input_settings
from models.backbones.registry import feature_width, timm_name
from models.bundle import Bundle
from models.network import Architecture, EmbeddingNetwork
from models.normalization import BatchNorm
from models.preprocess import Preprocess


def pretrained_bundle(
    backbone: str,
    weights: str,
    image_size: int | Sequence[int] | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    preprocess: Preprocess | None = None,
    *,
    trust_code: bool = False,
) -> Bundle:
    """A bundle whose embeddings are a pretrained network's features, normalized to unit length.

    Args:
        backbone: its name, as :func:`build_backbone` takes it.
        weights: as :class:`EmbeddingNetwork` takes them; recorded in the bundle's `info`.
        image_size: in pixels, a square's side or (height, width); by default that of the weights, or 64 where
            it is unknown. timm's transformers of a fixed input size are built for this size.
        backbone_args: keyword arguments of the backbone's constructor.
        preprocess: replaces the preprocessing that the weights were trained with.
        trust_code: see :func:`build_backbone`.

    Raises:
        InputError: there are no such weights, or they do not fit.
    """
    settings = input_settings(backbone, weights)
    if preprocess is None:
        preprocess = settings or Preprocess()
        preprocess = replace(preprocess, size=preprocess.size if image_size is None else image_size)
    args = _sized(backbone, preprocess) | dict(backbone_args or {})
    plain = build_backbone(backbone, args, preprocess.channels, trust_code)
    architecture = Architecture(
        backbone,
        args,
        normalization="batch" if any(isinstance(m, BatchNorm) for m in plain.modules()) else "layer",
        in_channels=preprocess.channels,
        embedding_dim=feature_width(plain, backbone, preprocess.channels),
        head="none",
    )
    network = EmbeddingNetwork(architecture, weights, trust_code=trust_code)
    return Bundle(network, architecture, preprocess, info={"weights": weights})


def _sized(backbone: str, preprocess: Preprocess) -> dict[str, Any]:
    """The argument that a timm transformer needs where images do not have its own size."""
    if (model := timm_name(backbone)) is None:
        return {}
    import timm

    given = timm.get_pretrained_cfg(model)
    wanted = preprocess.shape[1:]
    fixed = given is not None and given.fixed_input_size and tuple(given.input_size[1:]) != wanted
    return {"img_size": preprocess.to_dict()["size"]} if fixed else {}
