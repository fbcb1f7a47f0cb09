"""The interface of a backend."""

from typing import Protocol

from torch import Tensor


class Unavailable(Exception):  # noqa: N818  (a reason to use another backend rather than an error)
    """A backend cannot run this network here; the message says why and what would help."""


class Runner(Protocol):
    """A network prepared by a backend; may be called from several threads.

    Attributes:
        name: of the backend: "eager", "compiled" or "onnx".
        takes_pixels: whether it takes uint8 pixels and normalizes them itself, instead of float32 input.
    """

    @property
    def name(self) -> str:
        """See the class."""
        ...

    @property
    def takes_pixels(self) -> bool:
        """See the class."""
        ...

    def __call__(self, batch: Tensor) -> Tensor:
        """Embed a batch, (B, C, H, W) → float32 (B, dim) unit vectors; B may change from call to call."""
        ...
