"""The standard sets of metric learning, read from their official folders."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from data.file_index import cached_table
from data.layout import read_lines, table_from_columns
from data.sources.source import Source, located
from data.table import ImageTable
from models.errors import InputError


class _OfficialSource(Source):
    """A set in its official folder.

    Args:
        path: The folder, or the one that holds it; by default in the data folder, under its usual name.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = path


class Cars196Source(_OfficialSource):
    """Stanford Cars (Krause et al., 3dRR 2013): ``cars196``, with ``cars_annos.mat`` and ``car_ims``.

    The first 98 classes are for training, the other 98 for testing, as in the metric-learning literature;
    the annotations' own ``test`` flag splits images of the same classes and is not used.
    """

    def table(self) -> ImageTable:
        """See :meth:`Source.table`."""
        folder = located(self.path, "cars196", "cars_annos.mat")
        annotations = folder / "cars_annos.mat"
        return cached_table("cars196", [annotations], lambda: (_cars(folder, annotations), [annotations]))


def _cars(folder: Path, file: Path) -> ImageTable:
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


class CubSource(_OfficialSource):
    """Caltech-UCSD Birds 200-2011 (Wah et al., 2011): ``CUB_200_2011``, with ``images.txt`` and
    ``image_class_labels.txt``.

    The first 100 classes are for training, the other 100 for testing, as in the metric-learning
    literature; the set's own ``train_test_split.txt`` splits images of the same classes and is not used.
    """

    def table(self) -> ImageTable:
        """See :meth:`Source.table`."""
        folder = located(self.path, "CUB_200_2011", "images.txt")
        lists = [folder / "images.txt", folder / "image_class_labels.txt"]
        return cached_table("cub", lists, lambda: (_cub(folder, *lists), lists))


def _cub(folder: Path, images: Path, labels: Path) -> ImageTable:
    class_of = {image: int(number) for image, number in read_lines(labels, 2)}
    listed = read_lines(images, 2)
    return table_from_columns(
        folder / "images",
        pa.array([name for _, name in listed], pa.large_string()),
        pa.array([name.partition("/")[0] for _, name in listed]),
        split=["train" if class_of[image] <= 100 else "test" for image, _ in listed],
    )


_IN_SHOP_LIST = "list_eval_partition.txt"
_IN_SHOP_FOLDERS = ("", "Eval", "Anno")


class InShopSource(_OfficialSource):
    """DeepFashion In-Shop Clothes Retrieval (Liu et al., CVPR 2016): ``inshop``, with
    ``list_eval_partition.txt`` in it or in ``Eval`` or ``Anno``.

    Each test image is either a query or in the gallery (columns ``is_query`` and ``is_gallery``).
    """

    def table(self) -> ImageTable:
        """See :meth:`Source.table`."""
        folder = located(self.path, "inshop", _IN_SHOP_LIST, *_IN_SHOP_FOLDERS)
        files = (folder / below / _IN_SHOP_LIST for below in _IN_SHOP_FOLDERS)
        file = next(file for file in files if file.is_file())
        return cached_table("inshop", [file], lambda: (_in_shop(folder, file), [file]))


def _in_shop(folder: Path, file: Path) -> ImageTable:
    rows = read_lines(file, 3, skip=2)
    if unknown := {status for *_, status in rows} - {"train", "query", "gallery"}:
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


class OnlineProductsSource(_OfficialSource):
    """Stanford Online Products (Song et al., CVPR 2016): ``Stanford_Online_Products``, with
    ``Ebay_train.txt`` (11,318 classes) and ``Ebay_test.txt`` (11,316 others).

    Column ``super_class`` has the twelve kinds of product.
    """

    def table(self) -> ImageTable:
        """See :meth:`Source.table`."""
        folder = located(self.path, "Stanford_Online_Products", "Ebay_train.txt")
        lists = [folder / "Ebay_train.txt", folder / "Ebay_test.txt"]
        return cached_table("online-products", lists, lambda: (_products(folder, lists), lists))


def _products(folder: Path, lists: list[Path]) -> ImageTable:
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
