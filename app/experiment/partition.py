"""How the images of one gradient batch are divided into normalization groups."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError

# Key of the random stream of shuffled groups.
_SHUFFLE = 7


@dataclass(frozen=True)
class Partition:
    """Groups of equal size; only which images share a group differs between partitions.

    Attributes:
        size: images in a group.
        classes: classes in a group, with size / classes images each; None shuffles the whole batch.
    """

    size: int
    classes: int | None = None

    @property
    def name(self) -> str:
        """For example "2 × 16", classes × images, or "shuffled"."""
        return "shuffled" if self.classes is None else f"{self.classes} × {self.size // self.classes}"

    def groups(self, classes: int, images: int, key: tuple[int, ...]) -> NDArray[np.int64]:
        """The groups of a batch that holds ``classes`` runs of ``images`` images of one class.

        Args:
            classes: in the batch.
            images: of each class in the batch.
            key: of the random choice, where there is one.

        Returns:
            Positions in the batch, int64 (number of groups, size).

        Raises:
            InputError: the batch cannot be divided so.
        """
        total = classes * images
        if self.size < 1 or total % self.size:
            raise InputError(
                f"a batch of {total} images has no groups of {self.size}; let the size divide it"
            )
        if self.classes is None:
            of_group = np.random.default_rng((_SHUFFLE, *key)).permutation(total)
        else:
            of_group = self._by_class(classes, images)
        return of_group.reshape(-1, self.size)

    @staticmethod
    def interleaved(groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Groups (G, size) in the order in which position i is of group i modulo G.

        A contiguous tensor (B, C, H, W) in this order, viewed as (size, G · C, H, W), has each group in
        channels of its own.
        """
        return groups.T.ravel()

    def _by_class(self, classes: int, images: int) -> NDArray[np.int64]:
        """Positions group by group."""
        inside = self.classes or 1
        each = self.size // inside
        if self.size % inside or images % each or classes % inside:
            raise InputError(
                f"groups of {inside} classes in {self.size} images do not divide {classes} classes × "
                f"{images} images evenly"
            )
        chunks = np.arange(classes * images).reshape(classes, images // each, each)
        return chunks.transpose(1, 0, 2).ravel()
