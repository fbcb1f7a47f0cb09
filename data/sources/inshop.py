"""DeepFashion In-Shop Clothes Retrieval (Liu et al., CVPR 2016)."""

from pathlib import Path

import pyarrow as pa

from data.file_index import cached_table
from data.layout import read_lines, table_from_columns
from data.sources.source import Source, located
from data.table import ImageTable
from models.errors import InputError

_LIST = "list_eval_partition.txt"
_BELOW = ("", "Eval", "Anno")
_STATUS = {"train", "query", "gallery"}


class InShopSource(Source):
    """The official folder, with ``list_eval_partition.txt`` in it or in ``Eval`` or ``Anno``.

    Each test image is either a query or in the gallery (columns ``is_query`` and ``is_gallery``).

    Args:
        path: The folder of the benchmark; by default ``inshop`` in the data folder.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = path

    def table(self) -> ImageTable:
        """See :meth:`Source.table`."""
        folder = located(self.path, "inshop", _LIST, *_BELOW)
        file = next(folder / below / _LIST for below in _BELOW if (folder / below / _LIST).is_file())
        return cached_table("inshop", [file], lambda: (_read(folder, file), [file]))


def _read(folder: Path, file: Path) -> ImageTable:
    rows = read_lines(file, 3, skip=2)
    if unknown := {status for *_, status in rows} - _STATUS:
        raise InputError(
            f"{file}: evaluation status {min(unknown)!r} is none of train, query, gallery; "
            "use the official file"
        )
    return table_from_columns(
        folder / "Img" if (folder / "Img").is_dir() else folder,
        pa.array([name for name, _, _ in rows], pa.large_string()),
        pa.array([item for _, item, _ in rows]),
        split=["train" if status == "train" else "test" for *_, status in rows],
        is_query=[status == "query" for *_, status in rows],
        is_gallery=[status == "gallery" for *_, status in rows],
    )
