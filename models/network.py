"""The embedding network and its architecture, which is stored as plain JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.backbones.registry import build_backbone, feature_width
from models.backbones.weights import load_weights, set_input_channels
from models.errors import InputError
from models.fusion import FusedForward
from models.normalization import set_normalization
from models.renamed import renamed
from models.tta import View, as_views


@dataclass(frozen=True)
class Architecture:
    """Everything that defines an embedding network except its weights.

    Attributes:
        backbone: "conv4", "resnet10", "inception_resnet_v1", a torchvision model's name, "timm.<name>", or a
            class path (which only loads with `trust_code`).
        backbone_args: keyword arguments of the backbone's constructor.
        normalization: one of `models.normalization.KINDS`.
        normalization_args: arguments of the normalization, for example {"rmax": 3, "dmax": 5}.
        in_channels: channels of the input images, 1 or 3.
        embedding_dim: length of an embedding.
        head: "linear" adds a linear layer after the backbone; "none" takes the backbone's output, whose width
            must then be `embedding_dim`.
        tta: test-time augmentation: in evaluation mode an embedding is the mean over the image and these
            views of it, normalized again; each view costs as much as the image itself.
    """

    backbone: str = "conv4"
    backbone_args: dict[str, Any] = field(default_factory=dict)
    normalization: str = "renorm"
    normalization_args: dict[str, Any] = field(default_factory=dict)
    in_channels: int = 3
    embedding_dim: int = 128
    head: Literal["linear", "none"] = "linear"
    tta: tuple[View, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        # Left out where empty, so that the fingerprints of older bundles stay valid.
        tta = values.pop("tta")
        return {**values, "tta": list(tta)} if tta else values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Architecture":
        """The inverse of :meth:`to_dict`; also reads "tta" under its former name "views".

        Raises:
            InputError: a key is unknown, or a view is unusable.
        """
        values = renamed("Architecture", values)
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise InputError(
                f"architecture: unknown key {sorted(unknown)[0]!r}; was it made by a newer version?"
            )
        return cls(**{**values, "tta": as_views(values.get("tta", ()))})


class EmbeddingNetwork(nn.Module):
    """A backbone, average pooling of feature maps, a linear head, and normalization to unit length.

    Args:
        architecture: what to build.
        weights: pretrained weights of the backbone: "packaged" (timm.tf_efficientnet_lite0 only), a local
            file, "DEFAULT", or a name that timm or torchvision knows for the backbone. They are loaded before
            the normalization is replaced, so BatchNorm statistics are converted too.
        trust_code: allow a backbone's class path outside models.backbones, torchvision.models and timm.

    Shape: float (B, in_channels, H, W) → (B, embedding_dim), rows of length 1, in float32 or wider even under
        autocast.

    Attributes:
        projection: (embedding_dim, features) or None; replaces the head in evaluation mode. Set during
            training by :class:`models.callbacks.pca_head.PCAHead`. It is not in the state dict;
            :meth:`adopt` makes it the head.

    Raises:
        InputError: names are unknown or cannot be combined.
    """

    def __init__(
        self, architecture: Architecture, weights: str | None = None, *, trust_code: bool = False
    ) -> None:
        super().__init__()
        self.architecture = architecture
        a = architecture
        if a.embedding_dim < 1:
            raise InputError(f"embedding_dim is {a.embedding_dim}; give at least 1")
        backbone = build_backbone(a.backbone, a.backbone_args, a.in_channels, trust_code)
        if weights is not None:
            backbone = load_weights(backbone, a.backbone, weights, a.backbone_args, a.in_channels)
        set_input_channels(backbone, a.in_channels)
        width = feature_width(backbone, a.backbone, a.in_channels)
        self.backbone = set_normalization(backbone, a.normalization, a.normalization_args)
        if a.head == "linear":
            self.head: nn.Module = nn.Linear(width, a.embedding_dim)
        elif a.head != "none":
            raise InputError(f"head is 'linear' or 'none', not {a.head!r}")
        elif width != a.embedding_dim:
            raise InputError(f"head: none needs embedding_dim {width}, the width of {a.backbone}")
        else:
            self.head = nn.Identity()
        self.projection: Tensor | None = None
        self._run_backbone = FusedForward()
        # Convolutions and batch statistics are faster in this layout: on a CPU by a third or more.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Embed preprocessed images (B, C, H, W) as unit vectors (B, embedding_dim)."""
        if self.training:
            return self.without_tta(images)
        vectors = self._evaluate(images)
        if not self.architecture.tta:
            return vectors
        for view in self.architecture.tta:
            vectors = vectors + self._evaluate(view(images))
        return functional.normalize(vectors, dim=1)

    def without_tta(self, images: Tensor) -> Tensor:
        """Embed as in training, with the trained head and no test-time augmentation: (B, embedding_dim)."""
        return _unit(self.head(self.features(images)))

    def features(self, images: Tensor) -> Tensor:
        """The input of the head for images (B, C, H, W): (B, features)."""
        features = self._run_backbone(self.backbone, images)
        return features.mean((2, 3)) if features.ndim == 4 else features

    @torch.no_grad()
    def adopt(self, projection: Tensor) -> None:
        """Make a projection (embedding_dim, features) the weight of the head, in training too.

        Raises:
            InputError: there is no linear head, or it has another shape.
        """
        if not isinstance(self.head, nn.Linear) or self.head.weight.shape != projection.shape:
            raise InputError(
                f"a projection of shape {tuple(projection.shape)} does not fit the network's head"
            )
        self.head.weight.copy_(projection)
        self.head.bias.zero_()
        self.projection = None

    def _evaluate(self, images: Tensor) -> Tensor:
        if self.projection is None:
            return self.without_tta(images)
        return _unit(functional.linear(self.features(images), self.projection))


def _unit(vectors: Tensor) -> Tensor:
    wide = torch.promote_types(vectors.dtype, torch.float32)
    return functional.normalize(vectors.to(wide), dim=1)
