"""What every source of images is."""

from abc import ABC, abstractmethod

from data.table import ImageTable


class Source(ABC):
    """Something that images can be listed from. Its arguments say where; nothing is read before
    :meth:`table`.
    """

    @abstractmethod
    def table(self) -> ImageTable:
        """The index of all images.

        Raises:
            InputError: The source is missing or holds no usable images.
        """
