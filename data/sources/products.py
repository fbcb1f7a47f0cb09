"""Stanford Online Products (Song et al., CVPR 2016)."""

from pathlib import Path

import pyarrow as pa

from data.file_index import cached_table
from data.layout import read_lines, table_from_columns
from data.sources.source import Source, located
from data.table import ImageTable


class OnlineProductsSource(Source):
    """The official folder, with ``Ebay_train.txt`` (11,318 classes) and ``Ebay_test.txt`` (11,316 others).

    Column ``super_class`` has the twelve kinds of product.

    Args:
        path: The folder ``Stanford_Online_Products``, or the one that holds it; by default in the data
            folder.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = path

    def table(self) -> ImageTable:
        """See :meth:`Source.table`."""
        folder = located(self.path, "Stanford_Online_Products", "Ebay_train.txt")
        lists = [folder / "Ebay_train.txt", folder / "Ebay_test.txt"]
        return cached_table("online-products", lists, lambda: (_read(folder, lists), lists))


def _read(folder: Path, lists: list[Path]) -> ImageTable:
    rows = [
        (split, *fields)
        for split, file in zip(("train", "test"), lists, strict=True)
        for fields in read_lines(file, 4, skip=1)
    ]
    return table_from_columns(
        folder,
        pa.array([row[4] for row in rows], pa.large_string()),
        pa.array([f"{row[2]:0>5}" for row in rows]),
        split=[row[0] for row in rows],
        metadata={"super_class": [row[4].partition("/")[0].removesuffix("_final") for row in rows]},
    )
