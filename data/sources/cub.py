"""Caltech-UCSD Birds 200-2011 (Wah et al., 2011)."""

from pathlib import Path

import pyarrow as pa

from data.file_index import cached_table
from data.layout import read_lines, table_from_columns
from data.sources.source import Source, located
from data.table import ImageTable


class CubSource(Source):
    """The official folder, with ``images.txt`` and ``image_class_labels.txt``.

    The first 100 classes are for training, the other 100 for testing, as in the metric-learning
    literature; the set's own ``train_test_split.txt`` splits images of the same classes and is not used.

    Args:
        path: The folder ``CUB_200_2011``, or the one that holds it; by default in the data folder.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = path

    def table(self) -> ImageTable:
        """See :meth:`Source.table`."""
        folder = located(self.path, "CUB_200_2011", "images.txt")
        lists = [folder / "images.txt", folder / "image_class_labels.txt"]
        return cached_table("cub", lists, lambda: (_read(folder, *lists), lists))


def _read(folder: Path, images: Path, labels: Path) -> ImageTable:
    class_of = {image: int(number) for image, number in read_lines(labels, 2)}
    listed = read_lines(images, 2)
    return table_from_columns(
        folder / "images",
        pa.array([name for _, name in listed], pa.large_string()),
        pa.array([name.partition("/")[0] for _, name in listed]),
        split=["train" if class_of[image] <= 100 else "test" for image, _ in listed],
    )
