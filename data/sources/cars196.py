"""Stanford Cars (Krause et al., 3dRR 2013)."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from data.file_index import cached_table
from data.layout import table_from_columns
from data.sources.source import Source, located
from data.table import ImageTable
from models.errors import InputError


class Cars196Source(Source):
    """The official folder, with ``cars_annos.mat`` and ``car_ims``.

    The first 98 classes are for training, the other 98 for testing, as in the metric-learning literature;
    the annotations' own ``test`` flag splits images of the same classes and is not used.

    Args:
        path: The folder that holds both; by default ``cars196`` in the data folder.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = path

    def table(self) -> ImageTable:
        """See :meth:`Source.table`."""
        folder = located(self.path, "cars196", "cars_annos.mat")
        annotations = folder / "cars_annos.mat"
        return cached_table("cars196", [annotations], lambda: (_read(folder, annotations), [annotations]))


def _read(folder: Path, file: Path) -> ImageTable:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(file, squeeze_me=True)
        annotations, names = np.atleast_1d(content["annotations"]), np.atleast_1d(content["class_names"])
        numbers = annotations["class"].astype(np.int64)
        images = annotations["relative_im_path"].astype(str)
        # The number keeps classes of the same name apart, and in their official order.
        classes = [f"{number:03d} {names[number - 1]}" for number in numbers]
    except (OSError, MatReadError, KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"{file}: cannot be read as the set's annotations ({error})") from error
    return table_from_columns(
        folder,
        pa.array(images.tolist(), pa.large_string()),
        pa.array(classes),
        split=np.where(numbers <= 98, "train", "test").tolist(),
    )
